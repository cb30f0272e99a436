"""Finding and killing the processes of a run that another process drives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from vitrail.training.continuity import Continuity

ROOT = Path(__file__).parents[2]


def start_job(*arguments: object, log: Path, script: str = "train.py") -> "subprocess.Popen[bytes]":
    """A script of `jobs/` in a process of its own, with a Ray of its own."""
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "jobs" / script), *map(str, arguments)]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def wait_until(
    happens: Callable[[], object], job: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 240
) -> None:
    """Return when it happens; fail with the job's output if that ends, or time does, before."""
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def step_of(folder: Path) -> int:
    """The step that a run has last reported."""
    return Continuity.load(folder).step


def workers_of(pid: int) -> list[psutil.Process]:
    """The training workers of the Ray that this process has started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_with_all_its_processes(job: "subprocess.Popen[bytes]") -> None:
    """SIGKILL the driver first, then the Ray that it leaves behind: a machine that goes away."""
    processes = psutil.Process(job.pid).children(recursive=True)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)
