"""The largest micro-batch whose step fits into a GPU's memory: tried once, and remembered."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.config import ComputeConfig, Recipe
from vitrail.errors import VitrailError
from vitrail.models.segmentor import Segmentor
from vitrail.training.step import LossModule

_ADAM_COPIES = 2
"""Tensors as large as the parameters that the optimiser keeps."""
_SLACK = 0.05
"""Share of the memory that is left free, for what the trial does not have: other streams, fragments, validation."""


class NothingFitsError(VitrailError):
    """Not even one sample's step fits into the device's memory."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.device = device

    def __str__(self) -> str:
        return f"not even one sample fits into the memory of {self.device}; --checkpoint-activations may help"


def fitting_micro_batch(
    segmentor: Segmentor, recipe: Recipe, compute: ComputeConfig, share: int, *, remembered: Path, spare_copies: int = 0
) -> int:
    """Samples of a worker's `share` that go through at once, as many as fit. On a CPU that is all of them.

    `remembered` keeps the answer by device and settings, for later starts. `spare_copies`: further tensors as large as
    the parameters, as DistributedDataParallel's buckets are.

    Raises:
        NothingFitsError: not even one sample fits.
    """
    device = next(segmentor.parameters()).device
    if device.type != "cuda":
        return share
    key = f"{torch.cuda.get_device_name(device)} {recipe.digest()} {compute.digest()} {share} {spare_copies}"
    known: dict[str, int] = json.loads(remembered.read_text()) if remembered.is_file() else {}
    if key not in known:
        trial = _Trial(segmentor, recipe, compute, copies=_ADAM_COPIES + spare_copies)
        found = largest_that_fits(share, trial)
        if found is None:
            raise NothingFitsError(torch.cuda.get_device_name(device))
        known[key] = found
        remembered.write_text(json.dumps(known, indent=1))
    return known[key]


def largest_that_fits(share: int, attempt: Callable[[int], None]) -> int | None:
    """The first of `share`, its half, and so on rounded up, that `attempt` takes without running out of memory.

    The halves cut a share into micro-batches of like size. None where not even 1 is taken.
    """
    cuts = 1
    while True:
        size = -(-share // cuts)
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
        if size == 1:
            return None
        cuts *= 2


class _Trial:
    """A forward and a backward pass beside all else that will be in memory; leaves the weights as they were."""

    def __init__(self, segmentor: Segmentor, recipe: Recipe, compute: ComputeConfig, *, copies: int) -> None:
        # Compiled, it would take minutes, and no more memory.
        self._module = LossModule(segmentor, compute.model_copy(update={"compile": False})).train()
        self._side, self._copies = recipe.transforms.crop_size, copies

    def __call__(self, size: int) -> None:
        device = next(self._module.parameters()).device
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        kept: list[Tensor] = []
        try:
            kept += [torch.empty_like(p) for _ in range(self._copies) for p in self._module.parameters()]
            free, total = torch.cuda.mem_get_info(device)
            kept.append(torch.empty(int(min(free, _SLACK * total)), dtype=torch.uint8, device=device))
            images = torch.zeros((size, 3, self._side, self._side), dtype=torch.uint8, device=device)
            sizes = torch.full((size, 2), self._side, device=device)
            self._module(images, sizes, images[:, 0])["loss"].backward()
        finally:
            _clear(self._module)
            for buffer, before in buffers:
                buffer.copy_(before)


def _clear(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None
