"""A checkout to send jobs from, and the commands of somebody who may send them to a head."""

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from head import Head
from ray.job_submission import JobSubmissionClient
from typer.testing import CliRunner

from vitrail.cli import app

ROOT = Path(__file__).parents[2]
TINY = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
TINY += ["model.backbone.img_size=64"]
"""Changes that make a nano recipe smaller still."""
WAIT = """\
import signal, sys
def end(signum, frame):
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print("begun", flush=True)
while True:
    signal.pause()
"""
"""Prints that it begins, and ends when it is told to, after what takes longer than nothing."""


def make_checkout(path: Path, scripts: Mapping[str, str]) -> Path:
    """A checkout of this project's code with further scripts in jobs/, by name."""
    for part in ("platform", "jobs", "pipelines"):
        shutil.copytree(ROOT / part, path / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name, text in scripts.items():
        (path / "jobs" / f"{name}.py").write_text(text)
    subprocess.run(["git", "-C", str(path), "init", "--quiet"], check=True)
    return path


@dataclass(frozen=True)
class Cluster:
    """A head, and a checkout to send from."""

    head: Head
    checkout: Path

    def run(self, *arguments: Any, **environment: str | None) -> tuple[int, str]:
        """A `vitrail` command of somebody who has the token: exit code, and all output."""
        settings = {**self.head.environment(), "RAY_ADDRESS": None, "MLFLOW_TRACKING_URI": None, "COLUMNS": "300"}
        result = CliRunner().invoke(app, list(map(str, arguments)), env={**settings, **environment})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    def submit(self, script: str, *options: str, name: str) -> tuple[int, str]:
        return self.run("submit", "--name", name, *options, self.checkout / "jobs" / f"{script}.py")

    def wait_until(self, name: str, happens: Callable[[str], bool], timeout_s: float = 240) -> None:
        """Return when it happens in a job's log; fail with that if time is over."""
        deadline = time.monotonic() + timeout_s
        while not happens(log := self.run("logs", name)[1]):
            assert time.monotonic() < deadline, log
            time.sleep(0.5)

    def client(self) -> JobSubmissionClient:
        """Ray's own, for what it knows of a job."""
        return JobSubmissionClient(self.head.address, headers={"Authorization": f"Bearer {self.head.token}"})

    def train(
        self,
        data: Path,
        *options: str,
        name: str,
        steps: int,
        workers: int = 2,
        lr: float = 1e-3,
        script_options: Sequence[str] = (),
    ) -> tuple[int, str]:
        """Send the training of a tiny model."""
        script = [self.checkout / "jobs/train.py", "upernet_vit-nano_mln_128x128_1k", "--data", data, "--name", name]
        changes = [*TINY, f"val_interval={steps}", f"schedule.peak_lr={lr}"]
        sets = [part for change in changes for part in ("--set", change)]
        sized = ["--workers", workers, "--steps", steps]
        return self.run("submit", *options, *script, *sized, *sets, *script_options)
