"""The one place where MLflow is imported: quiet, without telemetry, and told not to retry behind our back.

Importing MLflow takes more than a second, so it happens inside functions, in the process that talks to it.
"""

import getpass
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vitrail.errors import VitrailError
from vitrail.secrets import mask
from vitrail.tracking.store import ensure_store, is_http

T = TypeVar("T")

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # The client repeats every call, those that create something too, so one lost answer makes two runs. We look up
    # by our own tag before each attempt instead. Its default of 7 retries also blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Defaults for the environment; what the user has set stays."""

JOB_VARIABLE, OWNER_VARIABLE = "VITRAIL_JOB", "VITRAIL_JOB_OWNER"
"""Set for a job on a cluster, and so for its workers: its id in Ray, and who sent it."""
JOB_TAG = "vitrail.job"
"""Of a run, the id of the job that made it."""


def quiet_environment() -> None:
    """Set `ENVIRONMENT` where the user has not; must come before the first import of MLflow."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def connect(tracking_uri: str) -> Any:
    """An `MlflowClient` whose runs and models both live at `tracking_uri`; a local store is made ready first."""
    quiet_environment()
    ensure_store(tracking_uri)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def current_user() -> str:
    """Who acts, for the record: as MLflow's server knows them, or this machine; a number where it has no names."""
    if signed_in := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return signed_in
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def job_tags() -> dict[str, str]:
    """What runs say of the job they are part of; nothing outside of one."""
    job, owner = os.environ.get(JOB_VARIABLE), os.environ.get(OWNER_VARIABLE)
    if not job:
        return {}
    return {JOB_TAG: job, "mlflow.source.type": "JOB", **({"mlflow.user": owner} if owner else {})}


def error_code(error: BaseException) -> str | None:
    """MLflow's code of an error, such as RESOURCE_DOES_NOT_EXIST, or None for errors that are not MLflow's."""
    return getattr(error, "error_code", None)


def is_permanent(error: BaseException, *, tracking_uri: str) -> bool:
    """Whether sending the same thing again must fail again; everything not known to be so is worth a retry."""
    from mlflow.exceptions import RestException

    if isinstance(error, (TypeError, ValueError)):  # a garbled answer is a ValueError too, and passes
        return not isinstance(error, (OSError, json.JSONDecodeError))
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:  # the artifact proxy's answers carry no code of MLflow's
        return 400 <= status < 500 and status not in (401, 403, 404, 408, 429)
    code = error_code(error)
    if code == "RESOURCE_DOES_NOT_EXIST":
        # A 404 that MLflow did not write comes from a proxy whose server is away.
        return isinstance(error, RestException) or not is_http(tracking_uri)
    # An exhausted connection pool is answered with 400, and passes.
    return code == "INVALID_PARAMETER_VALUE" and "QueuePool" not in str(error)


@contextmanager
def as_default(tracking_uri: str) -> Iterator[None]:
    """Make `tracking_uri` MLflow's default for a while: a local registry looks for logged models there alone."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unsets it, and the variable that it had set
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


class TrackingError(VitrailError):
    """MLflow could not be reached, or refused what it was asked."""

    def __init__(self, tracking_uri: str, reason: str) -> None:
        super().__init__(tracking_uri, reason)
        self.tracking_uri, self.reason = tracking_uri, reason

    def __str__(self) -> str:
        return (
            f"MLflow at {mask(self.tracking_uri)}: {mask(self.reason)}; nothing is half done, so the same command may "
            "be repeated"
        )


def retry(call: Callable[[], T], *, tracking_uri: str, timeout_s: float) -> T:
    """The result of `call`, which must be safe to repeat, tried for up to `timeout_s`; once for a local store.

    Raises:
        TrackingError: MLflow refused it, or did not answer in time.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    deadline, delay_s = time.monotonic() + (timeout_s if is_http(tracking_uri) else 0.0), 0.5
    while True:
        try:
            return call()
        except (MlflowException, RequestException) as error:
            denied = error_code(error) in ("PERMISSION_DENIED", "UNAUTHENTICATED")
            if denied or is_permanent(error, tracking_uri=tracking_uri) or time.monotonic() + delay_s > deadline:
                raise TrackingError(tracking_uri, str(error).splitlines()[0][:500]) from error
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, 5.0)
