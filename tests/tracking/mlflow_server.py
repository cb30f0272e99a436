"""A real MLflow server for tests, that can be killed and started again on the same port."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from vitrail.tracking.backend import sqlite_backend
from vitrail.tracking.server import ServerConfig, artifact_destination


class Server:
    """MLflow's server on a folder with a database."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        log = (self.root / "server.log").open("ab")
        config = ServerConfig(
            backend=sqlite_backend(self.root), artifacts=artifact_destination(self.root, None), port=self.port
        )
        self._process = subprocess.Popen(
            config.command(), env=config.environment(), stdout=log, stderr=log, start_new_session=True
        )
        wait_until_healthy(self.url, self._process)

    def freeze(self) -> None:
        """Keep the server from answering: connections are taken, and nothing comes back."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """End the server and its worker at once, as a lost machine would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until_healthy(url: str, process: subprocess.Popen) -> None:
    """Return once the server answers; a server that ends, or takes longer than three minutes, is an error."""
    deadline = time.monotonic() + 180
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{url} does not answer; the server's exit code is {process.poll()}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
