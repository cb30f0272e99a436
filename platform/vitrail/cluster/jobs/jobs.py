"""Jobs on a cluster by name: sent, followed, listed and stopped through Ray's Jobs API.

A name is one live job's at a time. The n-th job of a name has the id NAME-n in Ray, which refuses an id that is taken:
of two that are sent at once under one name, one is refused.
"""

import asyncio
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.job_submission import JobSubmissionClient

from vitrail.cluster.jobs import stop_pending
from vitrail.cluster.jobs.code_package import pack_own_package
from vitrail.cluster.jobs.request import EXPORT_RUNS, JobRequest
from vitrail.cluster.jobs.server import connect, explained
from vitrail.cluster.queue.record import RUNNING, WAITING, YIELDING
from vitrail.errors import UnknownNameError, UsageError, VitrailError

_AT_WORK = ("RUNNING", "YIELDING")
_LIVE = ("PENDING", "QUEUED", *_AT_WORK)
_POLL_S = 0.5
_STOP_TIMEOUT_S = 180.0
"""Beyond the 120 s that cluster.yaml gives a job to save a checkpoint."""
HELPER = "vitrail.helps"
"""Noted of a job that only serves another: ends it, or looks at the cluster before it is sent."""
_FIELDS = ("name", "owner", "command", "revision", "submitted_at")


class NameInUseError(UsageError):
    """A live job has this name."""

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(name, owner)
        self.name, self.owner = name, owner

    def __str__(self) -> str:
        return (
            f"{self.owner}'s job {self.name} has not ended; choose another --name, or end it with "
            f"`vitrail stop {self.name}`"
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as Ray knows it, and what was noted when it was sent."""

    id: str
    name: str
    status: str
    """Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; for a job that Ray has started, QUEUED while it waits
    for its turn, and YIELDING while it makes room."""
    owner: str
    command: str
    revision: str
    submitted_at: str
    seconds: float
    """From being sent to its end, or until now."""
    exit_status: int | None
    """Of its process."""
    message: str
    priority: int = 0
    preemptible: bool = False
    expected_start: float | None = None
    """Unix time, of a job that waits; None if unknown."""
    after: str = ""
    """The jobs that it waits for, where nobody knows when they end."""
    machine: str | None = None
    """Ray's id of the machine that its process is, or was, on; its log is there."""
    ray_job: str | None = None
    """What Ray calls the work of its process, and notes of its actors."""

    @classmethod
    def of(cls, details: Any) -> "Job":
        """From Ray's `JobDetails`; jobs that were sent otherwise are named by their id."""
        metadata = details.metadata or {}
        start_s, end_s = (details.start_time or 0) / 1000, (details.end_time or time.time() * 1000) / 1000
        sent_otherwise = {
            "name": details.submission_id,
            "owner": "somebody",
            "command": details.entrypoint,
            "revision": "unknown",
            "submitted_at": datetime.fromtimestamp(start_s, UTC).isoformat(timespec="seconds"),
        }
        noted = {field: metadata.get(f"vitrail.{field}") or sent_otherwise[field] for field in _FIELDS}
        return cls(
            id=details.submission_id,
            status=_status(str(getattr(details.status, "value", details.status)), metadata),
            priority=int(metadata.get("vitrail.priority", 0)),
            preemptible=metadata.get("vitrail.preemptible") == "yes",
            expected_start=float(metadata.get("vitrail.expected_start") or 0) or None,
            after=metadata.get("vitrail.after", ""),
            seconds=max(0.0, end_s - start_s),
            exit_status=details.driver_exit_code,
            message=details.message or "",
            machine=details.driver_node_id,
            ray_job=details.job_id,
            **noted,
        )

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.status in _LIVE

    @property
    def at_work(self) -> bool:
        """Whether it has the workers that it asked for, if only to save before it makes room."""
        return self.status in _AT_WORK

    @property
    def exit_code(self) -> int:
        """What a command that waited for it ends with: 0 only for success, 2 for a wrong command, else 1."""
        if self.status == "SUCCEEDED":
            return 0
        return 2 if self.status == "FAILED" and self.exit_status == 2 else 1


def _status(rays: str, notes: dict[str, str]) -> str:
    """A job's status from Ray's and what its process notes; Ray takes one that waits for its turn for one that runs."""
    if rays != "RUNNING":
        return rays
    return {WAITING: "QUEUED", YIELDING: "YIELDING", RUNNING: "RUNNING"}.get(notes.get("vitrail.state", RUNNING), rays)


class Jobs:
    """The jobs of the cluster at an address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: JobSubmissionClient = connect(address)

    def submit(self, request: JobRequest, *, packed: Callable[[int], None] = lambda size_bytes: None) -> Job:
        """Send the checkout's code and start the job; `packed` is told the code's size before it is sent.

        Raises:
            NameInUseError: a live job has the name.
            CodeTooLargeError: Ray does not take so much code.
        """
        same_name = [job for job in self.all() if job.name == request.name]
        for job in same_name:
            if job.live:
                raise NameInUseError(job.name, job.owner)
        numbers = [int(job.id.rpartition("-")[2]) for job in same_name if job.id.rpartition("-")[0] == request.name]
        job_id = f"{request.name}-{1 + max(numbers, default=0)}"
        with _package() as package, explained(self.address):
            packed(request.code.write(package))
            try:
                self._client.submit_job(
                    entrypoint=request.entrypoint(),
                    submission_id=job_id,
                    runtime_env={"working_dir": str(package), "env_vars": request.environment(job_id)},
                    metadata=request.notes(),
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise NameInUseError(request.name, "somebody") from None
                raise
        return self._read(job_id)

    def all(self) -> list[Job]:
        """Every job that was sent to the cluster since its head was started, the newest first."""
        with explained(self.address):
            known = self._client.list_jobs()
        found = [details for details in known if details.submission_id and HELPER not in (details.metadata or {})]
        found.sort(key=lambda details: details.start_time or 0, reverse=True)
        return [Job.of(details) for details in found]

    def find(self, name: str) -> Job:
        """The newest job of a name.

        Raises:
            UnknownNameError: there is none.
        """
        jobs = self.all()
        for job in jobs:
            if name in (job.name, job.id):
                return job
        raise UnknownNameError("job", name, dict.fromkeys(job.name for job in jobs))

    def log(self, job: Job) -> str:
        """All that the job has printed."""
        with explained(self.address):
            return str(self._client.get_job_logs(job.id))

    def follow(self, job: Job, show: Callable[[str], None]) -> Job:
        """Show what the job prints until it ends, and return how it ended; a job that cannot be followed goes on."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.id):
                show(text)

        with explained(self.address):
            asyncio.run(tail())
        return self._until_ended(job, timeout_s=None)

    def stop(self, job: Job) -> Job:
        """End a job, which gets a SIGTERM and time to save a checkpoint, or, if it has not begun, never does.

        Raises:
            VitrailError: it has not ended in time.
        """
        if not job.live:
            return job
        with explained(self.address):
            self._client.stop_job(job.id)
            if self._read(job.id).status == "PENDING":
                self._stop_pending(job)
        return self._until_ended(job, timeout_s=_STOP_TIMEOUT_S)

    def recover(self) -> str:
        """Bring back what an earlier head of this cluster had; what came of it, job by job.

        Raises:
            VitrailError: it failed on the head.
        """
        with _package() as package, explained(self.address):
            pack_own_package(package)
            helper = self._client.submit_job(
                entrypoint=f"{EXPORT_RUNS}; exec python -m vitrail.cluster.queue.recovery",
                runtime_env={"working_dir": str(package), "env_vars": {"PYTHONPATH": "."}},
                metadata={HELPER: "recovery"},
            )
        ended = self._until_ended(self._read(helper), timeout_s=_STOP_TIMEOUT_S)
        said = self.log(ended)
        if ended.status != "SUCCEEDED":
            raise VitrailError(f"the head's jobs could not be brought back: {said.strip()[-500:] or ended.message}")
        return said

    def _stop_pending(self, job: Job) -> None:
        source = Path(stop_pending.__file__).read_text()
        entrypoint = shlex.join(["python", "-c", source, job.id])
        helper = self._client.submit_job(entrypoint=entrypoint, metadata={HELPER: job.id})
        ended = self._until_ended(self._read(helper), timeout_s=_STOP_TIMEOUT_S)
        if ended.status != "SUCCEEDED" and self._read(job.id).live:
            raise VitrailError(f"{job.name} waits and could not be stopped: {ended.message.strip()[-500:]}")

    def _until_ended(self, job: Job, *, timeout_s: float | None) -> Job:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (now := self._read(job.id)).live:
            if deadline is not None and time.monotonic() > deadline:
                raise VitrailError(f"{job.name} was told to end {timeout_s:g} s ago and is still {now.status}")
            time.sleep(_POLL_S)
        return now

    def _read(self, job_id: str) -> Job:
        with explained(self.address):
            return Job.of(self._client.get_job_info(job_id))


@contextmanager
def _package() -> Iterator[Path]:
    """Where code is packed before it is sent."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "code.zip"
