"""A real MLflow server for tests, that can be killed and started again on the same port."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from vitrail.tracking.server import server_command, server_environment


class Server:
    """MLflow's server on a folder with a database."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        log = (self.root / "server.log").open("ab")
        command = server_command(f"sqlite:///{self.root}/mlflow.db", artifacts=self.root / "artifacts", port=self.port)
        self._process = subprocess.Popen(
            command, env=server_environment(), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 90
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.root / "server.log").read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """End the server and its worker at once, as a lost machine would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False
