"""A Ray head as on a cluster, in processes of its own: the Jobs API with token authentication, apart from our Ray."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

_START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Head:
    """A running head: where jobs are sent, and what it asks for."""

    address: str
    token: str
    runs: Path
    """Where its jobs keep their runs."""
    temporary: Path
    """Ray's own folder."""
    pid: int
    """Of the command that runs it all."""

    def environment(self) -> dict[str, str]:
        """For a client that may get in."""
        return {"RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}


@contextmanager
def start_head(folder: Path, *options: str, num_cpus: int, environment: dict[str, str]) -> Iterator[Head]:
    """A head on free ports that is gone, with all that it started, at the end."""
    token = secrets.token_hex(32)
    with ExitStack() as stack:
        # Sockets' paths must be short.
        temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        ports = iter(free_ports(8))
        dashboard = next(ports)
        named = ["--port", "--ray-client-server-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port"]
        named += ["--metrics-export-port", "--runtime-env-agent-port", "--node-manager-port"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"--num-cpus={num_cpus}", f"--temp-dir={temporary}", f"--dashboard-port={dashboard}"]
        command += ["--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--object-store-memory=200000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", *options]
        command += [f"{name}={port}" for name, port in zip(named, ports, strict=True)]
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        settings |= {"RAY_worker_niceness": "0", "VITRAIL_RUNS": str(folder / "runs"), **environment}
        settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
        with (folder / "head.log").open("wb") as log:
            head = subprocess.Popen(
                command, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder
            )
        stack.callback(end_with_children, head)
        started = Head(f"http://127.0.0.1:{dashboard}", token, folder / "runs", Path(temporary), head.pid)
        wait_for_jobs_api(started, head, folder / "head.log")
        yield started


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives out by itself."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for_jobs_api(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when jobs may be sent; fail with the head's output if it ends, or time does, before."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    signed = {"Authorization": f"Bearer {head.token}"}
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            if requests.get(f"{head.address}/api/jobs/", headers=signed, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)


def end_with_children(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to a process, and SIGKILL to what of its descendants is left."""
    descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in psutil.wait_procs(descendants, timeout=5)[1]:
        each.kill()
    psutil.wait_procs(descendants, timeout=10)
