"""Sends what training logs to MLflow from a thread of its own, by way of a journal on disk.

Training only ever appends to a local file. The thread sends in batches, notes how far it has come, waits when the
server is away, and goes on when it is back; another process that opens the folder later goes on where this one stopped.
"""

import fcntl
import itertools
import logging
import threading
import time
from pathlib import Path
from typing import IO

from vitrail.tracking.delivery import BATCHED, Delivery
from vitrail.tracking.journal import Entry, Journal, Record

logger = logging.getLogger(__name__)

_MAX_BATCH = 200
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0


class Outbox:
    """The sender of one run. Nothing that MLflow or the disk does is raised from here."""

    def __init__(self, folder: Path, *, tracking_uri: str) -> None:
        self.journal = Journal(folder)
        self.tracking_uri = tracking_uri
        self._changed = threading.Condition()
        self._closing = False
        self._abandoned = False
        self._disk_failed = False
        self._sent = int(self.journal.load_state().get("offset", 0))
        self._delivery = Delivery(tracking_uri, self.journal.files, **_learnt(self.journal.load_state()))
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
            return self._changed.wait_for(lambda: self._sent >= end or not self._thread.is_alive(), timeout_s) and (
                self._sent >= end
            )

    def close(self, timeout_s: float) -> bool:
        """Send what is left and stop, within `timeout_s`; False if something is left, which stays on disk."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        left = self.journal.end() - self._sent
        if left > 0:
            logger.warning(
                "tracking: %d bytes of records could not be sent to %s; they are kept in %s and go out when the run "
                "is continued",
                left,
                self.tracking_uri,
                self.journal.folder,
            )
        return left <= 0

    def _warn_of_disk(self, error: OSError) -> None:
        if not self._disk_failed:
            logger.warning("tracking: %s cannot be written (%s); what is logged is lost", self.journal.folder, error)
        self._disk_failed = True

    def _run(self) -> None:
        """The thread: take the folder for this process, then send until closed."""
        delay_s, failing = 0.0, False
        with (self.journal.folder / "lock").open("w") as lock:
            while not self._abandoned:
                try:
                    _take(lock)
                    if self._send_next():
                        delay_s = 0.0
                        if failing:
                            logger.warning("tracking: %s answers again", self.tracking_uri)
                        failing = False
                    elif self._wait_for_more():
                        return
                except Exception as error:
                    if not failing:
                        logger.warning(
                            "tracking: cannot send to %s (%s); training goes on, records are kept in %s",
                            self.tracking_uri,
                            _first_line(error),
                            self.journal.folder,
                        )
                    failing = True
                    delay_s = min(max(2 * delay_s, _FIRST_DELAY_S), _MAX_DELAY_S)
                    self._back_off(delay_s)

    def _send_next(self) -> bool:
        """Send the next batch and note it; False when nothing is left."""
        batch = self._next_batch()
        if not batch:
            return False
        records = []
        for entry in batch:
            if entry.record is None or "kind" not in entry.record:
                self.journal.quarantine(entry.line, "not a record")
            else:
                records.append(entry.record)
        if records:
            self._delivery.send(records, refuse=self._refuse)
        end = batch[-1].end
        self.journal.save_state({"offset": end, "run_id": self.run_id, "experiment_id": self.experiment_id})
        with self._changed:
            self._sent = end
            self._changed.notify_all()
        return True

    def _next_batch(self) -> list[Entry]:
        """The next entry alone, or as many as go together in one request."""
        entries = list(itertools.islice(self.journal.entries(self._sent), _MAX_BATCH))
        together = list(itertools.takewhile(_is_batched, entries))
        return together or entries[:1]

    def _refuse(self, record: Record, reason: str) -> None:
        logger.warning("tracking: %s refused a record: %s", self.tracking_uri, reason.splitlines()[0])
        self.journal.quarantine(record, reason)

    def _wait_for_more(self) -> bool:
        """Sleep until there is something to send; True when closing instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self.journal.end() > self._sent)
            return self._closing and self.journal.end() <= self._sent

    def _back_off(self, delay_s: float) -> None:
        """Wait `delay_s`, or a shorter while when `close` is waiting for us."""
        deadline = time.monotonic() + delay_s
        with self._changed:
            while not self._abandoned and (left := deadline - time.monotonic()) > 0:
                if self._closing:
                    left = min(left, _FIRST_DELAY_S)
                    self._changed.wait_for(lambda: self._abandoned, left)
                    return
                self._changed.wait_for(lambda: self._closing or self._abandoned, left)


def _take(lock: IO[str]) -> None:
    """Lock the folder, so that two processes never send the same journal; raises BlockingIOError if another has it."""
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_batched(entry: Entry) -> bool:
    return entry.record is not None and entry.record.get("kind") in BATCHED


def _learnt(state: Record) -> dict[str, str | None]:
    return {"run_id": state.get("run_id"), "experiment_id": state.get("experiment_id")}


def _first_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text.splitlines()[0][:300]
