"""What a benchmark leaves behind: figures, and all that is needed to judge and repeat them."""

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from vitrail.strict import Strict

_LOAD_AT_START = os.getloadavg()[0]  # this module is imported before anything is measured
_PACKAGES = ("vitrail", "torch", "ray", "numpy", "opencv-python-headless", "albumentations", "pyarrow", "timm")


class BenchmarkRecord(Strict):
    """One run of `jobs/benchmark.py`."""

    benchmark: str
    command: str
    started: str
    machine: dict[str, Any]
    versions: dict[str, str]
    results: dict[str, Any]

    @classmethod
    def of(cls, benchmark: str, results: dict[str, Any]) -> Self:
        """A record of this process: its command, machine and versions."""
        script = Path(sys.argv[0])
        command = shlex.join([f"{script.parent.name}/{script.name}", *sys.argv[1:]])
        return cls(
            benchmark=benchmark,
            command=f"uv run {command}",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=describe_machine(),
            versions={name: _version(name) for name in _PACKAGES},
            results=results,
        )

    @property
    def machine_name(self) -> str:
        """The machine in a few words."""
        gpu = f"{self.machine['gpu']}, " if "gpu" in self.machine else ""
        return f"{gpu}{self.machine['cpu']}, {self.machine['cores']} cores"

    def write(self, path: Path | None) -> None:
        """Leave it at `path` as JSON, if there is one."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.model_dump_json(indent=1) + "\n")


@dataclass
class Timing:
    """Times of a repeated piece of work, in seconds: by the clock, and of this process's CPU."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], Any]) -> None:
        """Do it once more."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.add(time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, wall_s: float, cpu_s: float) -> None:
        """Note a repetition timed elsewhere."""
        self.wall_s.append(wall_s)
        self.cpu_s.append(cpu_s)

    @property
    def median_wall_s(self) -> float:
        """Of all repetitions but the first, which warms up."""
        return statistics.median(self.wall_s[1:] or self.wall_s)

    @property
    def median_cpu_s(self) -> float:
        """Of all repetitions but the first, which warms up."""
        return statistics.median(self.cpu_s[1:] or self.cpu_s)


def median_ratio(above: Timing, below: Timing) -> float:
    """Median over repetitions, done in turn, of one work's time by the clock over the other's."""
    pairs = list(zip(above.wall_s, below.wall_s, strict=True))
    return statistics.median(a / b for a, b in pairs[1:] or pairs)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU and load of this machine; no name or address of it."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(_LOAD_AT_START, 2),
        **_describe_gpu(),
    }


def _describe_gpu() -> dict[str, Any]:
    """What a measurement that has used torch can have used; without torch, nothing."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"
