"""One optimisation step on one device."""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vitrail.config import ComputeConfig, Recipe
from vitrail.models.normalize import normalize
from vitrail.models.segmentor import Segmentor
from vitrail.training.optimizer import set_lr

DeviceBatch = tuple[Tensor, Tensor, Tensor]
"""Images uint8 (N, 3, H, W), their sizes without padding int64 (N, 2), labels uint8 (N, H, W), on the device."""


class LossModule(nn.Module):
    """A segmentor's loss as a module, computed as `compute` says, for DistributedDataParallel to wrap."""

    def __init__(self, segmentor: Segmentor, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        device = next(segmentor.parameters()).device
        if device.type == "cuda":
            segmentor.to(memory_format=torch.channels_last)
        segmentor.set_recompute(compute.checkpoint_activations)
        self.segmentor = segmentor
        self._precision = compute.precision
        self._device_type = device.type
        self._logits = torch.compile(segmentor.both_logits) if compute.compile else segmentor.both_logits

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A `DeviceBatch` -> the segmentor's losses."""
        x = normalize(images, sizes)
        with autocast(self._device_type, self._precision):
            logits = self._logits(x)
        losses: dict[str, Tensor] = self.segmentor.losses(*logits, labels)
        return losses


def autocast(device_type: str, precision: str) -> AbstractContextManager[None]:
    """The context in which a network is called to compute in `precision`."""
    return torch.autocast(device_type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: DeviceBatch,
    *,
    lr: float,
    max_grad_norm: float | None = None,
    micro_batch: int | None = None,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """Update the model once and return the losses and `grad_norm` as device tensors; reading them waits for the device.

    The update does not depend on how the batch is cut into micro-batches. `weight` is this worker's samples over the
    mean of all workers, for workers of unequal shares. Where `grad_norm` is not finite, which it then is on every
    worker, nothing is updated: no weight, no moment, no running statistic.
    """
    set_lr(optimizer, lr)
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    optimizer.zero_grad(set_to_none=True)
    values = _accumulate(model, batch, micro_batch or len(batch[0]), weight)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm(gradients)
    if max_grad_norm is not None:
        clip_grads_with_norm_(model.parameters(), max_grad_norm, norm)
    finite = norm.isfinite()
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # read by the fused kernel, as for GradScaler
    optimizer.step()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(finite, buffer, old))
    return {**values, "grad_norm": norm}


def _accumulate(model: nn.Module, batch: DeviceBatch, micro_batch: int, weight: float) -> dict[str, Tensor]:
    """Add up the gradients of all micro-batches; returns the mean losses."""
    count = len(batch[0])
    values: dict[str, Tensor] = {}
    starts = range(0, count, micro_batch)
    for start in starts:
        part = tuple(tensor[start : start + micro_batch] for tensor in batch)
        share = len(part[0]) / count
        with _without_exchange(model) if start != starts[-1] else nullcontext():
            losses = model(*part)
            (losses["loss"] * (share * weight)).backward()
        for name, value in losses.items():
            values[name] = values.get(name, 0.0) + share * value.detach()
    return values


def _without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients of all but the last micro-batch stay on their worker."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step (dropout, stochastic depth) a function of seed, step and rank alone.

    So a resumed run draws what an unbroken one would have drawn, and no generator state needs saving.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


def validation_steps(recipe: Recipe) -> set[int]:
    """After how many steps the model is validated and saved: every interval, and at the end."""
    return {*range(recipe.val_interval, recipe.total_steps, recipe.val_interval), recipe.total_steps}
