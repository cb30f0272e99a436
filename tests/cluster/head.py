"""A Ray head as on a cluster, in processes of its own: the Jobs API with token authentication, apart from our Ray."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

_START_TIMEOUT_S = 180
_RAY_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
_RAY_START += ["--node-ip-address=127.0.0.1", "--object-store-memory=200000000"]
_RAY_START += ["--min-worker-port=0", "--max-worker-port=0"]


@dataclass(frozen=True)
class Head:
    """A running head: where jobs are sent, and what it asks for."""

    address: str
    token: str
    runs: Path
    """Where its jobs keep their runs."""
    gcs: str
    """Where other machines join."""
    settings: Mapping[str, str]
    """The environment of its processes."""
    asked: Mapping[str, str]
    """Of that, what the test has asked for."""
    process: "subprocess.Popen[bytes]"
    """The command that runs it all."""
    temporary: Path
    """Ray's own folder."""

    @property
    def pid(self) -> int:
        """Of that command."""
        return self.process.pid

    def environment(self) -> dict[str, str]:
        """For a client that may get in."""
        return {"RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}


@contextmanager
def start_head(folder: Path, *options: str, num_cpus: int, environment: dict[str, str]) -> Iterator[Head]:
    """A head on free ports, if the options do not name one, that is gone, with all that it started, at the end."""
    token = secrets.token_hex(32)
    with ExitStack() as stack:
        # Sockets' paths must be short.
        temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        named = ("--dashboard-port", "--port", "--ray-client-server-port")
        ports = dict(zip(named, map(str, free_ports(len(named))), strict=True))
        ports |= {name: port for name, _, port in (option.partition("=") for option in options) if name in ports}
        command = [*_RAY_START, "--head", f"--num-cpus={num_cpus}", f"--temp-dir={temporary}"]
        command += ["--dashboard-host=127.0.0.1", *_own_ports(), *options]
        command += [f"{name}={port}" for name, port in ports.items()]
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        # On a busy machine the raylet takes longer to be known than the 30 seconds that Ray gives it.
        settings |= {"RAY_raylet_start_wait_time_s": "120"}
        settings |= {"RAY_worker_niceness": "0", "VITRAIL_RUNS": str(folder / "runs"), **environment}
        settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
        head = _start(command, settings, folder / "head.log")
        stack.callback(end_with_children, head)
        started = Head(
            f"http://127.0.0.1:{ports['--dashboard-port']}",
            token,
            folder / "runs",
            f"127.0.0.1:{ports['--port']}",
            settings,
            environment,
            head,
            Path(temporary),
        )
        wait_for_jobs_api(started, head, folder / "head.log")
        yield started


@contextmanager
def start_machine(
    head: Head,
    log: Path,
    *options: str,
    num_cpus: int,
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator["subprocess.Popen[bytes]"]:
    """Another machine of a head's cluster, which has joined when the block begins, and is gone at its end; `within`
    starts its processes, and `environment` is what they find in place of what the head was asked to have."""
    before = len(alive_machines(head))
    command = [*within, *_RAY_START, f"--address={head.gcs}", f"--num-cpus={num_cpus}", *_own_ports(), *options]
    settings = head.settings
    if environment is not None:
        settings = {name: value for name, value in settings.items() if name not in head.asked} | dict(environment)
    machine = _start(command, settings, log)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while len(alive_machines(head)) == before:
            assert machine.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield machine
    finally:
        end_with_children(machine)


def alive_machines(head: Head) -> list[dict[str, Any]]:
    """The machines that the head takes for alive."""
    signed = {"Authorization": f"Bearer {head.token}"}
    answer = requests.get(f"{head.address}/api/v0/nodes?detail=1", headers=signed, timeout=30).json()
    return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


def switch_off(machine: "subprocess.Popen[bytes]") -> None:
    """End all processes of a machine at once."""
    top = psutil.Process(machine.pid)
    processes = [top, *top.children(recursive=True)]
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=30)


def _start(command: list[str], settings: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=settings, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent
        )


def _own_ports() -> list[str]:
    named = ["--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port"]
    named += ["--runtime-env-agent-port", "--node-manager-port"]
    return [f"{name}={port}" for name, port in zip(named, free_ports(len(named)), strict=True)]


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
    """SIGTERM to a process, and SIGKILL to it and its descendants where they go on.

    Ray gives a machine 30 seconds to be emptied, which nobody who reads the outcome of a test needs.
    """
    descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in psutil.wait_procs(descendants, timeout=5)[1]:
        each.kill()
    psutil.wait_procs(descendants, timeout=10)
