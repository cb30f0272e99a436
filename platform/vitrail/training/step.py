"""One optimisation step on one device."""

import hashlib

import torch
from torch import Tensor, nn

from vitrail.config import Recipe
from vitrail.models.normalize import normalize
from vitrail.models.segmentor import Segmentor


class LossModule(nn.Module):
    """A segmentor's loss as a module, so that DistributedDataParallel sees every forward pass."""

    def __init__(self, segmentor: Segmentor) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor, sizes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """uint8 (N, 3, H, W), int64 (N, 2), uint8 (N, H, W) -> the segmentor's losses."""
        losses: dict[str, Tensor] = self.segmentor.loss(normalize(images, sizes), labels)
        return losses


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    lr: float,
    max_grad_norm: float | None,
) -> dict[str, Tensor]:
    """Update the model once and return the losses as device tensors; reading them is the caller's sync point."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    losses: dict[str, Tensor] = model(*batch)
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step (dropout, stochastic depth) a function of seed, step and rank alone.

    So a resumed run draws what an unbroken one would have drawn, and no generator state needs saving.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


def validation_steps(recipe: Recipe) -> set[int]:
    """After how many steps the model is validated and saved: every interval, and at the end."""
    return {*range(recipe.val_interval, recipe.total_steps, recipe.val_interval), recipe.total_steps}
