"""Our models for the architectures that golden files name, filled by their weight rule."""

from dataclasses import dataclass

import numpy as np
import torch
from golden import Golden, Rules
from numpy.typing import NDArray
from torch import Tensor

from vitrail.config import ModelConfig, Recipe
from vitrail.models.naming import to_mmseg
from vitrail.models.segmentor import Segmentor
from vitrail.recipes import RECIPES


def recipe_of(arch: str) -> Recipe:
    """The published recipe of an architecture such as `deit_b_ln_mln`."""
    family, size, *neck = arch.split("_")
    stem = "_".join([f"{family}-{size}16", *neck])
    return next(recipe for name, recipe in RECIPES.items() if name.startswith(f"upernet_{stem}_512x512"))


def without_drop(config: ModelConfig) -> ModelConfig:
    """The same model without stochastic depth and dropout."""
    return config.model_copy(
        update={
            "backbone": config.backbone.model_copy(update={"drop_path_rate": 0.0}),
            "decode_head": config.decode_head.model_copy(update={"dropout_ratio": 0.0}),
            "auxiliary_head": config.auxiliary_head.model_copy(update={"dropout_ratio": 0.0}),
        }
    )


def build(golden: Golden, rules: Rules, *, size: int = 512, drop: bool = True) -> Segmentor:
    """The model that a file is about, for an image size, filled."""
    config = recipe_of(golden.arch).model
    backbone = config.backbone.model_copy(update={"img_size": size, "patch_bias": golden.patch_bias})
    config = config.model_copy(update={"backbone": backbone})
    with torch.device("meta"):  # the random weights would be overwritten
        model = Segmentor(config if drop else without_drop(config))
    state = model.state_dict()
    values = {k: torch.from_numpy(rules.weight(to_mmseg(k), tuple(v.shape))) for k, v in state.items()}
    model.load_state_dict(values, assign=True)
    return model


PARTS = ("pooled", "heads")
"""Of a model, by the float32 noise of their gradients: behind the pooled BatchNorm, or a head's own."""


@dataclass(frozen=True)
class Noise:
    """How far, relatively, float32 may be off, by part of the model."""

    suggested: dict[str, float]
    measured: dict[str, float]

    @classmethod
    def of(
        cls, suggested: dict[str, float], names: list[str], single: NDArray[np.float64], double: NDArray[np.float64]
    ) -> "Noise":
        """From a golden's float32 and float64 figures of the parameters `names`."""
        measured = dict.fromkeys(suggested, 0.0)
        for name, s, d in zip(names, single, double, strict=True):
            if not has_no_gradient(name):
                measured[part(name)] = max(measured[part(name)], float(abs(s - d) / d))
        return cls(suggested, measured)

    def allowed(self, name: str) -> float:
        """Three times the largest distance in the parameter's part, and no less than what the README suggests."""
        return max(self.suggested[part(name)], 3 * self.measured[part(name)])


def part(name: str) -> str:
    """Which of `PARTS` a parameter belongs to."""
    pooled = name.startswith(("backbone.", "neck.", "decode_head.psp_modules.", "decode_head.bottleneck."))
    return "pooled" if pooled else "heads"


def has_no_gradient(name: str) -> bool:
    """A constant per channel that the BatchNorm behind the next convolution removes: only rounding moves it."""
    return name.startswith(("neck.convs.0.", "neck.convs.1.", "neck.convs.2.")) and name.endswith(".bias")


def norms(tensors: dict[str, Tensor]) -> dict[str, float]:
    """L2 norm of each, by its name in mmsegmentation, summed in float64: torch's float32 norm is off by 1e-4."""
    return {to_mmseg(name): float(tensor.double().norm()) for name, tensor in tensors.items()}
