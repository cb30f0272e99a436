"""AdamW over few groups: what is decayed and what is not."""

import torch
from torch import nn

from vitrail.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, lr: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; `config.no_decay` picks, by name, those without weight decay.

    mmsegmentation makes a group of each parameter; only the weight decay differs between them, so two are enough.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kept = [parameter for name, parameter in trainable if any(part in name for part in config.no_decay)]
    decayed = [parameter for name, parameter in trainable if not any(part in name for part in config.no_decay)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,  # one kernel for all parameters, which can also pass over a step without asking the device
    )
