"""Where jobs are sent: Ray's Jobs API behind an address, asked with the cluster's token."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from vitrail.cluster.capacity import machines_of
from vitrail.errors import UsageError, VitrailError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CLUSTER_LABEL = "vitrail-cluster"
"""Of the head, holds the name that the launcher's file gives the cluster."""
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TIMEOUT_S = 30

for _module in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_module).setLevel(logging.WARNING)  # they say what they send, and how a socket was closed


class ClusterUnreachableError(VitrailError):
    """Nothing answers where jobs should be sent, or it refuses to."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"the cluster at {self.address}: {self.reason}"


def job_address(asked: str | None) -> str:
    """Where to send jobs: what was asked for, else the variables of Ray's own commands, else the end of a tunnel.

    Raises:
        UsageError: it is not an http address.
    """
    named = [os.environ[name] for name in _VARIABLES if os.environ.get(name)]
    # RAY_ADDRESS may also be the address for `ray.init`, which says nothing of where the Jobs API is.
    address = asked or next((value for value in named if value.startswith("http")), DEFAULT_ADDRESS)
    if urlsplit(address).scheme not in ("http", "https"):
        raise UsageError(f"{address} is not where jobs are sent; give the dashboard's, such as {DEFAULT_ADDRESS}")
    return address.rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """Ray's client for jobs.

    Raises:
        ClusterUnreachableError: nothing answers there, or the token is missing or wrong.
    """
    with explained(address), _no_variables():
        return JobSubmissionClient(address, headers=token_header())


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Say in our words that a cluster does not answer, or not to us."""
    try:
        yield
    except AuthenticationError:
        raise ClusterUnreachableError(
            address, "it refuses the token, or there is none: ~/.ray/auth_token must hold that of the cluster's nodes"
        ) from None
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise ClusterUnreachableError(
            address, f"nothing answers ({type(error).__name__}); `ray dashboard cluster.yaml` opens the way to it"
        ) from None
    except RuntimeError as error:  # how Ray's client reports every other answer than yes, and a broken connection
        raise ClusterUnreachableError(address, str(error).splitlines()[0]) from None


def token_header() -> dict[str, str]:
    """The cluster's token, where Ray's own variables or file have one, as a header."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and path.is_file():
        token = path.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token and token.strip() else {}


def machines_behind(address: str, launcher: dict[str, Any]) -> list[dict[str, float]]:
    """The resources of the cluster's machines: those alive, or, if it is the one that `launcher` made, those that it
    may start."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not (nodes := _nodes_alive(address)) and time.monotonic() < deadline:
        time.sleep(0.5)  # the head takes jobs some seconds before it knows of itself as a machine
    names = {(node.get("labels") or {}).get(CLUSTER_LABEL) for node in nodes}
    alive = [dict(node["resources_total"]) for node in nodes]
    return (machines_of(launcher) if launcher.get("cluster_name") in names - {None} else []) or alive


def _nodes_alive(address: str) -> list[dict[str, Any]]:
    with explained(address):
        url = f"{address}/api/v0/nodes?detail=1&limit=10000"
        answer = requests.get(url, headers=token_header(), timeout=_TIMEOUT_S)
        answer.raise_for_status()
    return [node for node in answer.json()["data"]["result"]["result"] if node["state"] == "ALIVE"]


@contextmanager
def _no_variables() -> Iterator[None]:
    """Ray's client prefers its variables to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
