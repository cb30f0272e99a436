"""Learning-rate schedules: what of each can be set, and the rate of every step.

lr = PolySchedule(peak_lr=1e-3).lr(step, total_steps)
"""

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from vitrail.strict import Fraction, Strict


class Warmup(Strict):
    """What all schedules share."""

    peak_lr: PositiveFloat = 6e-5
    warmup_steps: int = Field(default=1500, ge=0)
    warmup_ratio: PositiveFloat = 1e-6


class PolySchedule(Warmup):
    """mmsegmentation 0.x's `poly` with linear warm-up: decay from step 0, times a ramp; made the published numbers."""

    kind: Literal["poly"] = "poly"
    power: PositiveFloat = 1.0

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0 (mmcv 1.7 `PolyLrUpdaterHook`)."""
        decayed = self.peak_lr * math.pow(1 - step / total_steps, self.power)
        if step >= self.warmup_steps:
            return decayed
        return decayed * (1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio))


class LinearPolySchedule(Warmup):
    """mmsegmentation 1.x's `LinearLR` then `PolyLR`: reaches the peak at the end of warm-up and 0 at the last step."""

    kind: Literal["linear_poly"] = "linear_poly"
    power: PositiveFloat = 1.0

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0 (mmengine 0.10 schedulers in closed form)."""
        if step < self.warmup_steps:
            share = step / (self.warmup_steps - 1) if self.warmup_steps > 1 else 1.0
            return self.peak_lr * (self.warmup_ratio + (1 - self.warmup_ratio) * share)
        decay_steps = max(1, total_steps - self.warmup_steps - 1)
        steps_left = max(0, decay_steps - (step - self.warmup_steps))
        # Whole numbers are subtracted, then divided, which keeps all digits near the end.
        return self.peak_lr * math.pow(steps_left / decay_steps, self.power)


class CosineSchedule(Warmup):
    """Linear warm-up, then half a cosine down to `min_lr` (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    min_lr: float = 0.0

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0."""
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return self.peak_lr * (self.warmup_ratio + (1 - self.warmup_ratio) * share)
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class ConstantSchedule(Warmup):
    """Linear warm-up, a plateau, and a linear decay to 0 over the last `decay_share` of the steps."""

    kind: Literal["constant"] = "constant"
    decay_share: Fraction = 0.2

    def lr(self, step: int, total_steps: int) -> float:
        """Learning rate used in `step`, counted from 0."""
        ramp = 1.0
        if step < self.warmup_steps:
            ramp = self.warmup_ratio + (1 - self.warmup_ratio) * step / self.warmup_steps
        decay_steps = self.decay_share * total_steps
        left = (total_steps - step) / decay_steps if decay_steps else 1.0
        return self.peak_lr * min(ramp, left, 1.0)


Schedule = Annotated[PolySchedule | LinearPolySchedule | CosineSchedule | ConstantSchedule, Field(discriminator="kind")]
