"""Jobs on a cluster by name: sent, followed, listed and stopped through Ray's Jobs API.

A name is one live job's at a time. The n-th job of a name has the id NAME-n in Ray, which refuses an id that is taken:
of two that are sent at once under one name, one is refused.
"""

import asyncio
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.job_submission import JobSubmissionClient

from vitrail.cluster import stop_pending
from vitrail.cluster.job_request import JobRequest
from vitrail.cluster.job_server import connect, explained
from vitrail.errors import UnknownNameError, UsageError, VitrailError

_LIVE = ("PENDING", "RUNNING")
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
    """Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    owner: str
    command: str
    revision: str
    submitted_at: str
    seconds: float
    """From being sent to its end, or until now."""
    exit_status: int | None
    """Of its process."""
    message: str

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
            status=str(getattr(details.status, "value", details.status)),
            seconds=max(0.0, end_s - start_s),
            exit_status=details.driver_exit_code,
            message=details.message or "",
            **noted,
        )

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.status in _LIVE

    @property
    def exit_code(self) -> int:
        """What a command that waited for it ends with: 0 only for success, 2 for a wrong command, else 1."""
        if self.status == "SUCCEEDED":
            return 0
        return 2 if self.status == "FAILED" and self.exit_status == 2 else 1


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
        job_id = f"{request.name}-{1 + len(same_name)}"
        with tempfile.TemporaryDirectory() as folder, explained(self.address):
            package = Path(folder) / "code.zip"
            packed(request.code.write(package))
            try:
                self._client.submit_job(
                    entrypoint=request.entrypoint(),
                    submission_id=job_id,
                    runtime_env={"working_dir": str(package), "env_vars": request.environment(job_id)},
                    metadata=_metadata(request),
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


def _metadata(request: JobRequest) -> dict[str, str]:
    return {
        "vitrail.name": request.name,
        "vitrail.owner": request.owner,
        "vitrail.command": request.command,
        "vitrail.revision": request.code.revision,
        "vitrail.submitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
