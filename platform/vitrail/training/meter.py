"""Throughput and mean losses over the steps since they were last asked for."""

import time

import torch
from torch import Tensor


class Meter:
    """Adds up device tensors without reading them: `read` is the only sync point."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._reset()

    def add(self, values: dict[str, Tensor], *, images: int, wait_s: float) -> None:
        """Count one step: its losses, its images, and the seconds it waited for them."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._steps += 1
        self._images += images
        self._wait_s += wait_s

    def read(self) -> dict[str, float]:
        """Means of the losses, `images_per_s` and `data_wait_share`; starts a new interval."""
        if not self._steps:
            raise ValueError("no step was added since the last reading")
        names = list(self._sums)
        means = (torch.stack([self._sums[name].double() for name in names]) / self._steps).tolist()
        elapsed = time.perf_counter() - self._started
        rates = {"images_per_s": self._images / elapsed, "data_wait_share": min(1.0, self._wait_s / elapsed)}
        self._reset()
        return {**dict(zip(names, means, strict=True)), **rates}

    def pause(self) -> "Pause":
        """A context whose time does not count, for validation and saving."""
        return Pause(self)

    def _reset(self) -> None:
        self._sums.clear()
        self._steps = self._images = 0
        self._wait_s = 0.0
        self._started = time.perf_counter()


class Pause:
    """Moves the meter's start by as long as the block takes."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._meter._started += time.perf_counter() - self._entered
