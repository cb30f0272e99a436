"""AdamW over few groups: what is decayed and what is not, and which part of the backbone learns more slowly."""

import re
from typing import Any

import torch
from torch import nn

from vitrail.config import OptimizerConfig

_LR_SCALE = "lr_scale"
"""Key of a group's factor on the learning rate."""
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
_STEM = ("backbone.patch_embed.", "backbone.pos_embed", "backbone.cls_token")


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, lr: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; `config.no_decay` picks, by name, those without weight decay.

    mmsegmentation makes a group of each parameter; only the weight decay differs between them, and with
    `config.layer_decay` the learning rate, so a group of each such pair is enough.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = _lr_scales([name for name, _ in trainable], config.layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    # Decayed ones first, and the fast learners: where all learn alike, there are these two groups.
    for decay, kept in ((config.weight_decay, False), (0.0, True)):
        for (name, parameter), scale in zip(trainable, scales, strict=True):
            if any(part in name for part in config.no_decay) == kept:
                group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, _LR_SCALE: scale})
                group["params"].append(parameter)
    optimizer = torch.optim.AdamW(
        list(groups.values()),
        lr=lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,  # one kernel for all parameters, which can also pass over a step without asking the device
    )
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its part of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_LR_SCALE, 1.0)


def _lr_scales(names: list[str], layer_decay: float) -> list[float]:
    """Each parameter's factor: `layer_decay` to the number of layers between it and the heads (mmsegmentation 1.2
    `LearningRateDecayOptimizerConstructor` for ViT: embeddings, then each block, then the final norm with all else)."""
    blocks = [int(match[1]) for name in names if (match := _BLOCK.match(name))]
    heads = max(blocks, default=-1) + 2

    def layer(name: str) -> int:
        match = _BLOCK.match(name)
        return int(match[1]) + 1 if match else 0 if name.startswith(_STEM) else heads

    return [layer_decay ** (heads - layer(name)) for name in names]
