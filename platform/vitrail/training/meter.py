"""Throughput and mean losses over the steps since they were last asked for, and throughput since the start."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Totals:
    """Over all intervals but the first, which warms up."""

    images: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0


class Meter:
    """Adds up device tensors without reading them: `read` is the only sync point."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.first = Totals()
        """The interval that warms up."""
        self.paused_s = 0.0
        self._sums: dict[str, Tensor] = {}
        self._reset()

    @property
    def steady(self) -> Totals:
        """Throughput since the start, without the first interval where there are others."""
        return self.totals if self.totals.images else self.first

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
        interval = self.totals if self.first.images else self.first
        interval.images += self._images
        interval.seconds += elapsed
        interval.wait_s += self._wait_s
        self._reset()
        return {**dict(zip(names, means, strict=True)), **rates}

    @property
    def steps(self) -> int:
        """Added since the last reading."""
        return self._steps

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
        paused_s = time.perf_counter() - self._entered
        self._meter._started += paused_s
        self._meter.paused_s += paused_s
