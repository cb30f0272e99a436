"""What the gate demands of a candidate, in numbers that a user may set."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What a candidate must show."""

    margin: float | None = None
    """mIoU, as a fraction: by more than this the candidate must be better (0 by default); with `allow_equal`, by less
    than this it may be worse (0.005 by default). Both with 95 % confidence."""
    allow_equal: bool = False
    """Let a candidate pass that is as good as the champion."""
    max_class_drop: float = 0.10
    """IoU, as a fraction, that no class with enough pixels may lose."""
    min_class_share: float = 0.001
    """Share of the labelled pixels from which on a class has enough of them."""
    max_slowdown: float = 2.0
    """Times as long as the champion that predicting may take."""
    max_memory_growth: float = 2.0
    """Times as much memory as the champion that predicting may take."""
    min_images_per_s: float | None = None
    max_memory_gib: float | None = None

    def __post_init__(self) -> None:
        for name in ("margin", "max_class_drop", "min_class_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}={value} must be a fraction of at least 0 and below 1")
        for name in ("max_slowdown", "max_memory_growth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def least_gain(self) -> float:
        """What the lower end of the interval of the gain must exceed."""
        if self.allow_equal:
            return -(0.005 if self.margin is None else self.margin)
        return self.margin or 0.0
