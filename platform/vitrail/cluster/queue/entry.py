"""The process of a job on the head: waits for its turn, runs the script, makes room when asked, and keeps the record.

    python -m vitrail.cluster.queue.entry jobs/train.py …

What `vitrail submit` has Ray run. There is no server behind the queue: each job that waits decides from the records of
all, under one lock, whether its turn has come. It costs the head a process of some 100 MB while it waits.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import TypeAdapter
from ray.exceptions import RayError

from vitrail.cluster.capacity import GRANTED_CPUS_VARIABLE, Machine
from vitrail.cluster.holding import hold
from vitrail.cluster.jobs.code_package import pack_folder
from vitrail.cluster.queue.archive import JobArchive
from vitrail.cluster.queue.policy import Demand, Expectation, QueuedJob, decide, expected_starts
from vitrail.cluster.queue.record import (
    ALIVE,
    CODE,
    FAILED,
    LOG,
    RECORD,
    RECORD_VARIABLE,
    RUNNING,
    STOPPED,
    SUCCEEDED,
    WAITING,
    YIELDING,
    JobFolder,
    JobFolders,
    JobRecord,
)
from vitrail.cluster.queue.script_process import ScriptProcess
from vitrail.cluster.queue.table import JobTable
from vitrail.errors import exit_codes
from vitrail.options import CONTINUE_VARIABLE
from vitrail.tracking.environment import JOB_VARIABLE

_POLL_S = 1.0
_EXPECT_EVERY_S = 5.0
_ARCHIVE_EVERY_S = 60.0
_LEAST_GRACE_S = 120.0
"""For saving a checkpoint, also where the head gives less to jobs that are stopped."""


def main(command: Sequence[str]) -> int:
    """Run a script when its turn has come, and end as it does."""
    stopped = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.set()  # the script gets a SIGTERM of its own from Ray, saves and ends

    signal.signal(signal.SIGTERM, stop)
    folders = JobFolders(Path(os.environ["VITRAIL_RUNS"]).expanduser())
    folder = folders.of(os.environ[RECORD_VARIABLE])
    folder.path.mkdir(parents=True, exist_ok=True)
    with hold(folder.path / ALIVE):
        return QueuedScript(folders, folder, command, stopped).run()


class QueuedScript:
    """One job's way through the queue."""

    def __init__(
        self, folders: JobFolders, folder: JobFolder, command: Sequence[str], stopped: threading.Event
    ) -> None:
        self._folders, self._folder, self._command, self._stopped = folders, folder, command, stopped
        self._table = JobTable(os.environ["RAY_ADDRESS"])
        self._archive = JobArchive.from_environment()
        self._told: dict[str, str] = {}
        self._cpus = 1
        self._record = self._enter(os.environ[JOB_VARIABLE])

    def run(self) -> int:
        """Wait, run, make room and wait again, until the script has ended by itself or was stopped; its exit code."""
        code = 0
        while self._wait_for_turn():
            code = self._run_script()
            if self._stopped.is_set() or code == 0 or self._folder.load().state != YIELDING:
                break
            self._change(state=WAITING, yields_to=None, ends_at=None)
        stopped = self._stopped.is_set()
        (self._folder.path / CODE).unlink(missing_ok=True)
        state = STOPPED if stopped else SUCCEEDED if code == 0 else FAILED
        self._change(state=state, ended_at=time.time(), exit_status=code, yields_to=None, ends_at=None)
        self._keep(LOG, CODE)
        return code or int(stopped)

    def _enter(self, job_id: str) -> JobRecord:
        """The job's record: a new one, or that of a job that an earlier head has lost."""
        if self._folder.exists:
            record = self._folder.load()
        else:
            pack_folder(Path.cwd(), self._folder.path / CODE)
            record = self._new_record(job_id)
        return self._save(replace(record, state=WAITING, yields_to=None, ends_at=None), CODE)

    def _new_record(self, job_id: str) -> JobRecord:
        info = self._table.info(job_id)
        assert info is not None and info.metadata is not None, job_id
        notes = info.metadata
        return JobRecord(
            id=job_id,
            notes=notes,
            entrypoint=info.entrypoint,
            environment=(info.runtime_env or {}).get("env_vars", {}),
            demand=TypeAdapter(Demand).validate_json(notes["vitrail.demand"]),
            priority=int(notes["vitrail.priority"]),
            preemptible=notes["vitrail.preemptible"] == "yes",
            queued_at=(info.start_time or 1000 * time.time()) / 1000,
        )

    def _wait_for_turn(self) -> bool:
        """Return True when the job is to run, and False when it was stopped before."""
        expect_at = 0.0
        while not self._stopped.is_set():
            try:
                machines = self._table.machines()
            except RayError as error:  # a head under load; one that is gone takes this process along
                print(f"queue: the cluster does not say what it has: {error}", file=sys.stderr, flush=True)
            else:
                jobs = self._take_turn(machines)
                if self._record.state == RUNNING:
                    self._cpus = self._record.demand.cpus(machines)
                    return True
                if time.monotonic() >= expect_at:
                    expected = expected_starts(jobs, machines, now=time.time())[self._record.id]
                    self._tell(WAITING, expected)
                    expect_at = time.monotonic() + _EXPECT_EVERY_S
            self._stopped.wait(_POLL_S)
        return False

    def _take_turn(self, machines: Sequence[Machine]) -> list[QueuedJob]:
        """Begin, or have others make room, if that is what the policy says; all that are in the queue."""
        with self._folders.locked():
            living = self._folders.living()
            jobs = [record.queued() for _, record in living.values()]
            decision = decide(jobs, machines)
            if self._record.id in decision.start:
                starts = self._record.starts + 1
                self._record = replace(self._record, state=RUNNING, started_at=time.time(), starts=starts)
                self._folder.save(self._record)
            if decision.for_job == self._record.id:
                for folder, record in (living[other] for other in decision.ask_to_yield):
                    folder.save(replace(record, state=YIELDING, yields_to=self._record.id))
        return jobs

    def _run_script(self) -> int:
        """Run the script until it ends, by itself or because it is to make room; its exit code."""
        environment = {**os.environ, GRANTED_CPUS_VARIABLE: str(self._cpus)}
        if self._record.starts > 1:
            environment[CONTINUE_VARIABLE] = "1"
        self._keep(RECORD)
        script = ScriptProcess(self._command, environment=environment, log=self._folder.path / LOG)
        grace_s = max(_LEAST_GRACE_S, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 0)))
        kill_at, archive_at = None, time.monotonic() + _ARCHIVE_EVERY_S
        while (code := script.ended(_POLL_S)) is None:
            now = time.monotonic()
            state = (record := self._folder.load()).state
            self._tell(state, None)
            if kill_at is None and state == YIELDING:
                self._say(f"makes room for {record.yields_to}, and goes on by itself")
                script.ask_to_end()
                kill_at = now + grace_s
            if kill_at is not None and now > kill_at:
                self._say(f"has not ended {grace_s:.0f} s after it was asked to, and is ended")
                script.kill()
            self._note_end(script.seconds_left)
            if now > archive_at:
                self._keep(LOG)
                archive_at = now + _ARCHIVE_EVERY_S
        return code

    def _note_end(self, seconds_left: float | None) -> None:
        """Keep what the script says of its end, once it differs by more than a minute."""
        if seconds_left is None:
            return
        ends_at = time.time() + seconds_left
        if self._record.ends_at is None or abs(ends_at - self._record.ends_at) > 60:
            self._change(ends_at=ends_at)

    def _change(self, **changes: Any) -> None:
        """Change the record, part of which others may have changed."""
        with self._folders.locked():
            self._record = replace(self._folder.load(), **changes)
            self._folder.save(self._record)
        if "state" in changes:
            self._keep(RECORD)

    def _save(self, record: JobRecord, *along: str) -> JobRecord:
        with self._folders.locked():
            self._folder.save(record)
        self._keep(*along, RECORD)
        return record

    def _keep(self, *names: str) -> None:
        if self._archive is not None:
            self._archive.keep(self._folder, *names)

    def _tell(self, state: str, expected: Expectation | None) -> None:
        """Say how the job stands to those who ask Ray, and in its log where that is news."""
        minute = round(expected.at / 60) * 60 if expected and expected.at else ""
        after = ", ".join(expected.after) if expected else ""
        notes = {"vitrail.state": state, "vitrail.expected_start": str(minute), "vitrail.after": after}
        if notes == self._told:
            return
        if state == WAITING and after != self._told.get("vitrail.after"):
            self._say(f"waits for its turn, {_when(expected)}")
        try:
            self._table.note(self._record.id, notes, message=f"{state.lower()} in the queue")
        except RayError:  # said at the next opportunity
            return
        self._told = notes

    def _say(self, what: str) -> None:
        print(f"queue: {self._record.id} {what}", flush=True)


def _when(expected: Expectation | None) -> str:
    if expected is None or (expected.at is None and not expected.after):
        return "until the cluster has machines for it"
    if expected.at is None:
        return f"after {', '.join(expected.after)}"
    return f"expected at {datetime.fromtimestamp(expected.at, UTC):%H:%M} UTC"


if __name__ == "__main__":
    with exit_codes():
        raise SystemExit(main(sys.argv[1:]))
