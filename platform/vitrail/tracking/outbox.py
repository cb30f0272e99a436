"""Sends what training logs to MLflow from a thread of its own, by way of a journal on disk.

Training only ever appends to a local file. The thread sends in batches, notes how far it has come, waits when the
server is away, and goes on when it is back; another process that opens the folder later goes on where this one stopped.
Files go in a lane of their own, so that an artifact store that is away does not hold up the metrics.
"""

import fcntl
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vitrail.secrets import mask
from vitrail.tracking.delivery import BATCHED, Delivery
from vitrail.tracking.journal import Entry, Journal, Record

logger = logging.getLogger(__name__)

_MAX_BATCH = 200
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_CLOSING_DELAY_S = 0.5


@dataclass
class _Lane:
    """One of the two passes over the journal, with a place and a patience of its own."""

    name: str
    takes_files: bool
    sent: int
    """Offset in bytes up to which this lane's records have been dealt with."""
    delay_s: float = field(default=0.0, init=False)
    failed_at: float = field(default=0.0, init=False)

    def takes(self, entry: Entry) -> bool:
        """Whether an entry goes this way; what cannot be read goes with the small records."""
        return self.takes_files == (entry.record is not None and entry.record.get("kind") == "files")

    def failed(self) -> None:
        """Try again later, and later still the next time."""
        self.delay_s = min(max(2 * self.delay_s, _FIRST_DELAY_S), _MAX_DELAY_S)
        self.failed_at = time.monotonic()

    def due_in_s(self, *, hurry: bool) -> float:
        """Seconds until the next attempt; fewer in a hurry."""
        delay_s = min(self.delay_s, _CLOSING_DELAY_S) if hurry else self.delay_s
        return self.failed_at + delay_s - time.monotonic()


class Outbox:
    """The sender of one run. Nothing that MLflow or the disk does is raised from here."""

    def __init__(self, folder: Path, *, tracking_uri: str) -> None:
        self.journal = Journal(folder)
        self.tracking_uri = tracking_uri
        state = self.journal.load_state()
        self._small = _Lane("records", False, int(state.get("records", 0)))
        self._files = _Lane("files", True, int(state.get("files", 0)))
        self._delivery = Delivery(tracking_uri, self.journal.files, state.get("run_id"), state.get("experiment_id"))
        self._changed = threading.Condition()
        self._closing = False
        self._abandoned = False
        self._disk_failed = False
        self._thread = threading.Thread(target=self._run, name="mlflow-outbox", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once it is known."""
        return self._delivery.run_id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the run's experiment, once it is known."""
        return self._delivery.experiment_id

    def append(self, record: Record) -> None:
        """Keep a record on disk, to be sent soon. A full disk costs the record and a warning, not the training."""
        try:
            self.journal.append(record)
        except OSError as error:
            self._warn_of_disk(error)
            return
        with self._changed:
            self._changed.notify_all()

    def keep_file(self, content: bytes, suffix: str) -> str:
        """Name under which a record can point to a new file of this content."""
        try:
            return self.journal.keep_file(content, suffix)
        except OSError as error:
            self._warn_of_disk(error)
            return f"lost{suffix}"

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was appended so far is sent; False if that took longer than `timeout_s`."""
        end = self.journal.end()
        with self._changed:
            self._changed.wait_for(lambda: self._sent() >= end or not self._thread.is_alive(), timeout_s)
        return self._sent() >= end

    def close(self, timeout_s: float) -> bool:
        """Send what is left and stop, within `timeout_s`; False if something is left, which stays on disk."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        if self._sent() >= self.journal.end():
            return True
        logger.warning(
            "tracking: not all could be sent to %s; the rest is kept in %s and goes out when the run is continued",
            mask(self.tracking_uri),
            self.journal.folder,
        )
        return False

    def _sent(self) -> int:
        return min(self._small.sent, self._files.sent)

    def _warn_of_disk(self, error: OSError) -> None:
        if not self._disk_failed:
            logger.warning("tracking: %s cannot be written (%s); what is logged is lost", self.journal.folder, error)
        self._disk_failed = True

    def _run(self) -> None:
        """The thread: take the folder for this process, then send until closed or abandoned."""
        with (self.journal.folder / "lock").open("w") as lock:
            while not self._abandoned:
                moved = [self._try(lane, lock) for lane in (self._small, self._files)]
                if not any(moved) and self._wait():
                    return

    def _try(self, lane: _Lane, lock: IO[str]) -> bool:
        """Send the lane's next batch; False when there was nothing to do, or it failed, or it is too soon to retry."""
        if not self._is_open(lane) or lane.due_in_s(hurry=self._closing) > 0:
            return False
        try:
            _take(lock)
            moved = self._send_next(lane)
        except Exception as error:
            if not lane.delay_s:
                logger.warning(
                    "tracking: cannot send %s to %s (%s); training goes on, they are kept in %s",
                    *(lane.name, mask(self.tracking_uri), _first_line(error), self.journal.folder),
                )
            lane.failed()
            return False
        if lane.delay_s and moved:
            logger.warning("tracking: %s takes %s again", mask(self.tracking_uri), lane.name)
            lane.delay_s = 0.0
        return moved

    def _send_next(self, lane: _Lane) -> bool:
        """Send the next batch and note it; False when nothing is left."""
        batch, end = self._next_batch(lane)
        if end == lane.sent:
            return False
        records = []
        for entry in batch:
            if entry.record is None or "kind" not in entry.record:
                self.journal.quarantine(entry.line, "not a record")
            else:
                records.append(entry.record)
        if records:
            self._delivery.send(records, refuse=self._refuse)
        with self._changed:
            lane.sent = end
            self.journal.save_state(
                {
                    "records": self._small.sent,
                    "files": self._files.sent,
                    "run_id": self.run_id,
                    "experiment_id": self.experiment_id,
                }
            )
            self._changed.notify_all()
        return True

    def _next_batch(self, lane: _Lane) -> tuple[list[Entry], int]:
        """The lane's next entry, or as many as go in one request, and the offset where it is then."""
        batch: list[Entry] = []
        end = lane.sent
        for entry in self.journal.entries(lane.sent):
            if lane.takes(entry):
                if batch and not _is_batched(entry):
                    break
                batch.append(entry)
            end = entry.end
            if len(batch) == _MAX_BATCH or (batch and not _is_batched(batch[-1])):
                break
        return batch, end

    def _refuse(self, record: Record, reason: str) -> None:
        reason = mask(reason)
        logger.warning("tracking: %s refused a record: %s", mask(self.tracking_uri), reason.splitlines()[0])
        self.journal.quarantine(record, reason)

    def _is_open(self, lane: _Lane) -> bool:
        """Files have nowhere to go before the run is known."""
        return not lane.takes_files or self.run_id is not None

    def _wait(self) -> bool:
        """Sleep until there may be something to do; True when all is sent and the outbox is being closed."""
        with self._changed:
            end, closing = self.journal.end(), self._closing
            if self._sent() >= end and closing:
                return True
            # What is left cannot be sent now: sleep until the next attempt, a new record, or `close`.
            waiting = [lane for lane in (self._small, self._files) if lane.sent < end and self._is_open(lane)]
            timeout_s = min((lane.due_in_s(hurry=closing) for lane in waiting), default=None)
            self._changed.wait_for(
                lambda: self._abandoned or self._closing != closing or self.journal.end() > end,
                None if timeout_s is None else max(0.01, timeout_s),
            )
            return False


def _take(lock: IO[str]) -> None:
    """Lock the folder, so that two processes never send the same journal; raises BlockingIOError if another has it."""
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_batched(entry: Entry) -> bool:
    return entry.record is not None and entry.record.get("kind") in BATCHED


def _first_line(error: Exception) -> str:
    return mask(f"{type(error).__name__}: {error}").splitlines()[0][:300]
