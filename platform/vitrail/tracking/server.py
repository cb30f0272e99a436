"""How MLflow's own server is started: nothing but what runs and models need, reachable by those named alone."""

import ipaddress
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from vitrail.tracking.backend import Backend
from vitrail.tracking.environment import ENVIRONMENT
from vitrail.tracking.server_auth import auth_environment

SERVER_ENVIRONMENT = {
    # Without this, 15 processes and 3 GiB for features that segmentation does not use.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server: its database, where clients' files go, who reaches it, and whether they must sign in."""

    backend: Backend
    artifacts: str
    host: str = "127.0.0.1"
    port: int = 5000
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    auth_folder: Path | None = None

    def command(self) -> list[str]:
        """The command line, which everybody on the machine can read, and so holds no secret."""
        return [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--artifacts-destination", self.artifacts),
            *("--host", self.host),
            *("--port", str(self.port)),
            *("--workers", str(self.backend.workers)),
            *("--allowed-hosts", ",".join(self.hosts())),
            *("--cors-allowed-origins", ",".join(self.origins())),
            *("--uvicorn-opts", "--log-level=warning --timeout-graceful-shutdown=5"),
            *(() if self.auth_folder is None else ("--app-name", "basic-auth")),
        ]

    def environment(self) -> dict[str, str]:
        """The environment for that command, secrets included."""
        auth = {} if self.auth_folder is None else auth_environment(self.auth_folder)
        return {**ENVIRONMENT, **SERVER_ENVIRONMENT, **os.environ, **self.backend.environment(), **auth}

    def hosts(self) -> list[str]:
        """The Host headers to answer. MLflow's list would be replaced by ours, so this machine's are in it."""
        return [host for name in self._names() for host in _with_port(name, self.port)]

    def origins(self) -> list[str]:
        """The pages that may write. Without its own address, MLflow refuses what its own pages send from there."""
        pages = [f"http://{host}" for host in self.hosts()]
        behind_a_proxy = [f"https://{name}" for name in self.allowed_hosts]
        return [*dict.fromkeys([*pages, *behind_a_proxy, *self.cors_origins])]

    def address(self, host: str | None = None) -> str:
        """Where it answers: on this machine, or under the name `host`."""
        name = host or _ANY_ADDRESS.get(self.host, self.host)
        return f"http://{_bracketed(name)}:{self.port}"

    def client_address(self) -> str:
        """Where clients find it: the machine's name if it listens on every address."""
        return self.address(socket.gethostname() if self.host in _ANY_ADDRESS else None)

    def _names(self) -> list[str]:
        own = [] if is_loopback(self.host) else [self.host]
        if self.host in _ANY_ADDRESS:
            own = [socket.gethostname(), socket.getfqdn()]
        return [*dict.fromkeys(["localhost", "127.0.0.1", "[::1]", *map(_bracketed, own), *self.allowed_hosts])]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def artifact_destination(root: Path, artifacts: str | None) -> str:
    """Where the files that clients send are kept: an address as it is, a folder as one; `root`'s unless named."""
    if artifacts is not None and "://" in artifacts:
        return artifacts
    return (root / "artifacts" if artifacts is None else Path(artifacts)).resolve().as_uri()


def _with_port(name: str, port: int) -> tuple[str, ...]:
    """A name as Host headers have it, with and without the port; one that came with a port is meant as it is."""
    has_port = name.rpartition(":")[2].isdecimal() or name.endswith("*")
    return (name,) if has_port else (name, f"{name}:{port}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
