"""Steps whose gradient is not finite: found without waiting for the device at each, named by their samples, counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import VitrailError

_SHOWN = 32


class NonFiniteError(VitrailError):
    """More steps than allowed had a NaN or infinite loss or gradient."""

    def __init__(self, step: int, ids: tuple[str, ...], skipped: int, allowed: int) -> None:
        super().__init__(step, ids, skipped, allowed)
        self.step, self.ids, self.skipped, self.allowed = step, ids, skipped, allowed

    def __str__(self) -> str:
        shown = ", ".join(self.ids[:_SHOWN]) + (f" and {len(self.ids) - _SHOWN} more" if len(self.ids) > _SHOWN else "")
        return (
            f"the loss or a gradient of step {self.step} is NaN or infinite, with the samples {shown}. The weights "
            f"were not touched by it, and the last checkpoint is good ({self.skipped} such steps, {self.allowed} "
            "allowed). "
            "Look at these samples, lower schedule.peak_lr, set optimizer.max_grad_norm, or let --skip-non-finite N "
            "steps pass"
        )


@dataclass(frozen=True)
class NonFiniteStep:
    """A step that changed nothing, because its gradient was not finite."""

    step: int
    ids: tuple[str, ...]
    """This worker's samples."""


class FiniteCheck:
    """Collects each step's gradient norm on the device; `read` is the only sync point."""

    def __init__(self, *, skipped: int = 0) -> None:
        self.skipped = skipped
        """Steps passed over so far, those before a restart included."""
        self._norms: list[Tensor] = []
        self._steps: list[tuple[int, tuple[str, ...]]] = []

    def add(self, step: int, grad_norm: Tensor, ids: Sequence[str]) -> None:
        """Note a step's norm, which is the same on every worker, and which samples this worker had."""
        self._norms.append(grad_norm)
        self._steps.append((step, tuple(ids)))

    def read(self) -> list[NonFiniteStep]:
        """The steps since the last reading that were passed over."""
        if not self._norms:
            return []
        finite = torch.stack(self._norms).isfinite().tolist()
        bad = [NonFiniteStep(step, ids) for (step, ids), ok in zip(self._steps, finite, strict=True) if not ok]
        self._norms.clear()
        self._steps.clear()
        self.skipped += len(bad)
        return bad
