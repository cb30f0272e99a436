"""Requests about a model's speed, answered alike for our models and for mmsegmentation's.

    {"do": "load", "work": "train" or "predict", "batch": 2}    build it; what was loaded before is freed
    {"do": "run", "times": 1, "warm": 0}                        do it so often, after some times that are not counted
    {"do": "matrix peak"}                                       FLOP/s of a large matrix product
    {"do": "describe"}                                          the device's name, and versions

Imported by other Pythons too, from the folder it lies in: torch and the standard library only.
"""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Build = Callable[[str, int], Callable[[], object]]
"""From `work` and batch size to one repetition of it."""

_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


def configure_torch(device: str, threads: int) -> None:
    """The settings of both sides: float32 means float32, and cuDNN looks for its fastest kernels."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # as mmsegmentation's default_runtime.py, and our training worker, do
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


class ModelAnswers:
    """Holds one piece of work at a time.

    Args:
        dtype: of the matrices whose product is timed.
    """

    def __init__(self, build: Build, device: str, dtype: torch.dtype, *, versions: dict[str, str]) -> None:
        self._build, self._device, self._dtype = build, device, dtype
        self._versions = {"torch": torch.__version__, **versions}
        self._work: Callable[[], object] | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one of the requests above; one with the key `failed` where memory ran out."""
        try:
            return self._answer(request)
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
        self._free()  # not before the error, which holds on to tensors, is gone
        return {"failed": "out of memory"}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "load":
            self._free()
            self._work = self._build(request["work"], request["batch"])
            return {}
        if request["do"] == "run":
            return self._run(request["times"], request["warm"])
        if request["do"] == "matrix peak":
            return {"flops_per_s": self._matrix_peak()}
        return {
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "versions": self._versions,
        }

    def _run(self, times: int, warm: int) -> dict[str, Any]:
        assert self._work is not None
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(warm):
            self._work()
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            self._work()
        self._wait()
        answer = {
            "wall_s": (time.perf_counter() - wall) / times,
            "cpu_s": (time.process_time() - cpu) / times,
            "peak_bytes": self._peak_bytes(),
        }
        if self._device == "cuda":
            torch.cuda.empty_cache()  # the next to run is another process
        return answer

    def _matrix_peak(self) -> float:
        side = _MATRIX_SIDE[self._device]
        a, b = (torch.randn(side, side, device=self._device).to(self._dtype) for _ in range(2))
        seconds = []
        for _ in range(12):
            self._wait()
            begin = time.perf_counter()
            torch.mm(a, b)
            self._wait()
            seconds.append(time.perf_counter() - begin)
        return 2 * side**3 / statistics.median(seconds[2:])

    def _peak_bytes(self) -> int:
        """Of the GPU since this request began; of a CPU's process since its start, which ru_maxrss is not: that begins
        with the memory of the process that started it."""
        if self._device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _free(self) -> None:
        self._work = None
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()


def made_up_labels(batch: int, side: int, classes: int) -> Tensor:
    """Train ids int64 `(batch, side, side)` in squares of 16 pixels, a tenth of them ignored."""
    small = torch.randint(0, classes, (batch, -(-side // 16), -(-side // 16)))
    small[torch.rand(small.shape) < 0.1] = 255
    return small.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :side, :side].contiguous()
