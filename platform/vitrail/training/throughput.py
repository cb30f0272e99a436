"""How fast a run was and what held it up, on one card: for the console, for MLflow, and as JSON."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from vitrail.strict import Strict

_MATRIX_SIDE = {"cpu": 1536, "cuda": 8192}
_REPEATS = 5


class ThroughputCard(Strict):
    """Figures of one run since its last start, but for the restarts."""

    device: str
    workers: int
    precision: str
    images_per_s: float
    images_per_s_per_worker: float
    flops_per_image: float
    """Of a training step, by the plain network's arithmetic."""
    matrix_peak_flops: float
    """Per second, of one device, measured with a large matrix product."""
    utilisation: float
    """Of that peak. Above 1 is possible: convolving before upsampling needs fewer operations than the plain network."""
    data_wait_share: float
    """Share of the training time that the loop waited for a batch."""
    input_headroom: float
    """Rate of the same step on a batch that is there already, over the run's: 1 means that input costs nothing."""
    validation_share: float
    """Share of the run's time that went into validating and saving."""
    restarts: int
    lost_to_restarts_s: float
    """From the last step known before each restart until that step was reached again."""
    peak_memory_gib: float
    """Of rank 0: the device's, or on a CPU the process's."""

    def lines(self) -> list[str]:
        """The card as text."""
        return [
            f"{self.images_per_s:.1f} images/s on {self.workers} x {self.device}, {self.precision} "
            f"({self.images_per_s_per_worker:.1f} each)",
            f"{self.flops_per_image / 1e9:,.1f} GFLOP per image, {self.utilisation:.0%} of the matrix peak of "
            f"{self.matrix_peak_flops / 1e12:.2f} TFLOP/s",
            f"data wait {self.data_wait_share:.1%}, input headroom {self.input_headroom:.2f}x, "
            f"validation {self.validation_share:.1%}, peak memory {self.peak_memory_gib:.2f} GiB",
            f"{self.restarts} restarts, {self.lost_to_restarts_s:.0f} s lost to them",
        ]


def measure_matrix_peak(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product on this device, as this process may use it."""
    side = _MATRIX_SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median(seconds_each(lambda: a @ b, device, repeats=_REPEATS))


def seconds_each(work: Callable[[], object], device: torch.device, *, repeats: int) -> list[float]:
    """Seconds of each repetition after one that warms up, the device's work included."""
    seconds = []
    for _ in range(repeats + 1):
        _wait_for(device)
        begin = time.perf_counter()
        work()
        _wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def peak_memory_gib(device: torch.device) -> float:
    """Most memory ever allocated on a GPU by this process; on a CPU, the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.is_file():  # `ru_maxrss` is handed on by the process that started this one
        (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peak.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_name(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
