"""What is kept of every job below `VITRAIL_RUNS` on the head, from which a lost head's queue is made anew.

jobs/20261123-101500-night-1/job.json    what was asked for, and how it stands: replaced whole, under one lock
                             log.txt     all that the job has printed
                             code.zip    the code it brought along, while it is not over
                             alive       held by the job's process
jobs/.live/20261123-101500-night-1       empty: this job is not over, so that nobody need look at all that were
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vitrail.cluster.holding import is_held, wait_and_hold
from vitrail.cluster.queue.policy import Demand, QueuedJob
from vitrail.data.files import write_aside
from vitrail.errors import DataError

RECORD_VARIABLE = "VITRAIL_JOB_RECORD"
"""Set for a job, names its folder."""
RECORD, LOG, CODE, ALIVE = "job.json", "log.txt", "code.zip", "alive"
WAITING, RUNNING, YIELDING = "WAITING", "RUNNING", "YIELDING"
SUCCEEDED, FAILED, STOPPED = "SUCCEEDED", "FAILED", "STOPPED"
LIVE = (WAITING, RUNNING, YIELDING)
_LIVE_FOLDER = ".live"
_FORMAT = 1


class DamagedRecordError(DataError):
    """A job's record that cannot be read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is not a job's record: {self.reason}; move the folder away to go on without it"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as it was asked for, and how it stands."""

    id: str
    """In Ray, such as night-1."""
    notes: dict[str, str]
    """What was noted in Ray when it was sent: name, owner, command, revision, …"""
    entrypoint: str
    environment: dict[str, str]
    demand: Demand
    priority: int = 0
    preemptible: bool = False
    state: str = WAITING
    queued_at: float
    started_at: float | None = None
    """Unix time at which it began or went on; None while it waits."""
    ended_at: float | None = None
    starts: int = 0
    """How often it has begun or gone on."""
    yields_to: str | None = None
    """The job that it is to make room for."""
    exit_status: int | None = None
    ends_at: float | None = None
    """Expected, by its own last word."""
    format: int = field(default=_FORMAT)

    @property
    def live(self) -> bool:
        """Whether it waits or runs, as far as was written."""
        return self.state in LIVE

    def queued(self) -> QueuedJob:
        """What the policy sees of it."""
        return QueuedJob(
            id=self.id,
            priority=self.priority,
            queued_at=self.queued_at,
            demand=self.demand,
            preemptible=self.preemptible,
            started_at=None if self.state == WAITING else self.started_at,
            yielding=self.state == YIELDING,
            ends_at=self.ends_at,
        )


_ADAPTER = TypeAdapter(JobRecord)


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether there is a record in it."""
        return (self.path / RECORD).is_file()

    @property
    def alive(self) -> bool:
        """Whether the job's process lives."""
        return is_held(self.path / ALIVE)

    def load(self) -> JobRecord:
        """The record.

        Raises:
            DamagedRecordError: it cannot be read.
        """
        try:
            return _ADAPTER.validate_python(json.loads((self.path / RECORD).read_text()))
        except (OSError, ValueError, ValidationError) as error:
            raise DamagedRecordError(str(self.path / RECORD), str(error).splitlines()[0]) from None

    def save(self, record: JobRecord) -> None:
        """Replace the record; to be done under the lock."""
        marker = self.path.parent / _LIVE_FOLDER / self.path.name
        if record.live:
            marker.parent.mkdir(exist_ok=True)
            marker.touch()
        write_aside(self.path / RECORD, json.dumps(asdict(record), indent=1).encode())
        if not record.live:
            marker.unlink(missing_ok=True)


class JobFolders:
    """The jobs below a folder of runs."""

    def __init__(self, runs: Path) -> None:
        self.root = runs / "jobs"

    def of(self, name: str) -> JobFolder:
        """The folder of that name."""
        assert "/" not in name and name not in ("", ".", ".."), name
        return JobFolder(self.root / name)

    def all(self) -> list[JobFolder]:
        """Those with a record, the oldest first."""
        return [folder for path in sorted(self.root.glob(f"*/{RECORD}")) if (folder := JobFolder(path.parent)).exists]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing records until the block ends; a moment, not more."""
        self.root.mkdir(parents=True, exist_ok=True)
        with wait_and_hold(self.root / "lock"):
            yield

    def living(self) -> dict[str, tuple[JobFolder, JobRecord]]:
        """The jobs whose processes live and are not over, by id; damaged records are none. Under the lock."""
        found = {}
        for marker in sorted((self.root / _LIVE_FOLDER).glob("*")):
            folder = self.of(marker.name)
            if not folder.alive:
                continue
            try:
                record = folder.load()
            except DamagedRecordError:
                continue
            if record.live:
                found[record.id] = (folder, record)
        return found

    def change(self, folder: JobFolder, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Read, change and replace a record under the lock; the new one."""
        with self.locked():
            record = change(folder.load())
            folder.save(record)
        return record
