"""How MLflow's own server is started: one worker, nothing but what runs and models need, on this machine alone."""

import os
import sys
from pathlib import Path

from vitrail.tracking.environment import ENVIRONMENT

SERVER_ENVIRONMENT = {
    # Without this, 15 processes and 3 GiB for features that segmentation does not use.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # The default pool of 5 answers 24 trials that log at once with errors.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "20",
}


def server_command(tracking_uri: str, *, artifacts: Path, port: int) -> list[str]:
    """The command that serves a local store, and the files that clients send it, on 127.0.0.1."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", tracking_uri),
        *("--artifacts-destination", artifacts.resolve().as_uri()),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--workers", "1"),
        *("--uvicorn-opts", "--log-level=warning"),
    ]


def server_environment() -> dict[str, str]:
    """The environment for that command."""
    return {**ENVIRONMENT, **SERVER_ENVIRONMENT, **os.environ}
