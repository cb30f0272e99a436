"""Sends the probe of a dry run to a cluster as a small job of its own, and reads what it found."""

import shlex
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from vitrail.cluster.jobs.failure import reason_for_failure
from vitrail.cluster.jobs.jobs import HELPER
from vitrail.cluster.jobs.request import EXPORT_RUNS, JobRequest
from vitrail.cluster.jobs.server import connect, explained
from vitrail.cluster.preflight.facts import DEMAND_VARIABLE, MARK, Facts, Question
from vitrail.errors import UsageError, VitrailError

_TIMEOUT_S = 180.0
_POLL_S = 0.3
_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's client would wait for half a minute where a server is there and does not answer."""


class ProbeError(VitrailError):
    """The probe did not say what it found."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the cluster could not be looked at: {self.reason}"


class Probe:
    """A probe that was sent; `facts` waits for what it finds. None runs when the block ends.

    Ray keeps it in its list: one that is deleted right after its end comes back without its metadata (ray 2.60).
    """

    def __init__(self, address: str, request: JobRequest, known: Question) -> None:
        self._address, self._request, self._known = address, request, known
        self._id = f"dry-run-{uuid.uuid4().hex[:12]}"
        self._client: JobSubmissionClient = connect(address)
        self.code_bytes = 0
        """Of the checkout's code, packed. The job itself need not send it again."""

    def __enter__(self) -> "Probe":
        asked = self._request.environment(self._id) | _ENVIRONMENT
        asked[DEMAND_VARIABLE] = self._request.notes()["vitrail.demand"]
        with tempfile.TemporaryDirectory() as folder, explained(self._address):
            package = Path(folder) / "code.zip"
            self.code_bytes = self._request.code.write(package)
            self._client.submit_job(
                entrypoint=f"{EXPORT_RUNS}; exec {self._command()}",
                submission_id=self._id,
                runtime_env={"working_dir": str(package), "env_vars": asked},
                metadata={HELPER: self._request.name},
            )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError, OSError), explained(self._address):
            if not self._status().is_terminal():
                self._client.stop_job(self._id)

    def facts(self) -> Facts:
        """What it found.

        Raises:
            ProbeError: it failed, or took too long.
            UsageError: the command is wrong for the machines there.
        """
        ended = self._until_ended(time.monotonic() + _TIMEOUT_S)
        with explained(self._address):
            log = str(self._client.get_job_logs(self._id))
            info = self._client.get_job_info(self._id)
        found = [line for line in log.splitlines() if line.startswith(MARK)]
        if found:
            return Facts.model_validate_json(found[-1].removeprefix(MARK))
        if not ended:
            raise ProbeError(f"no answer for {_TIMEOUT_S:g} s; it is {info.status}, and `ray status` may say why")
        reason = reason_for_failure(log, info.message or "")
        if info.driver_exit_code == 2:
            raise UsageError(reason)
        raise ProbeError(reason)

    def _command(self) -> str:
        script = [str(self._request.script), *self._request.arguments]
        context = self._known.model_dump_json(exclude_defaults=True)
        return shlex.join(["python", "-m", "vitrail.cluster.preflight.probe", context, *script])

    def _until_ended(self, deadline: float) -> bool:
        while not self._status().is_terminal():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _status(self) -> JobStatus:
        with explained(self._address):
            return self._client.get_job_status(self._id)
