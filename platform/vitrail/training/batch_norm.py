"""Batch norm over the whole batch of all workers, on GPUs and on CPUs."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """The same model, its batch norms taking their statistics over all workers; parameters and names are kept.

    torch's own `SyncBatchNorm` is for GPUs alone; on CPUs `GlobalBatchNorm` computes the same.
    """
    if next(model.parameters()).is_cuda:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    group = dist.new_group(backend="gloo")  # its messages must not meet those of the gradients
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, GlobalBatchNorm.of(child, group))
    return model


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training are over the samples of all workers, however many each has."""

    group: Any

    @classmethod
    def of(cls, other: nn.BatchNorm2d, group: Any) -> "GlobalBatchNorm":
        """One with the parameters and the state of `other`."""
        module = cls(other.num_features, eps=other.eps, momentum=other.momentum)
        module.weight, module.bias = other.weight, other.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(module, name, getattr(other, name))
        module.group = group
        return module.train(other.training)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C, H, W)`"""
        if not self.training:
            return super().forward(x)
        count = torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype)
        dist.all_reduce(count, group=self.group)
        mean = all_reduce(x.sum(dim=(0, 2, 3)), group=self.group) / count  # type: ignore[no-untyped-call]
        centred = x - mean[:, None, None]
        variance = all_reduce((centred * centred).sum(dim=(0, 2, 3)), group=self.group) / count  # type: ignore[no-untyped-call]
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
