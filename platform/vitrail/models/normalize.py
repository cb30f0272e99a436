"""From uint8 images to what the network sees."""

from functools import cache

import torch
from torch import Tensor

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)


def normalize(images: Tensor, sizes: Tensor | None = None) -> Tensor:
    """uint8 RGB `(N, 3, H, W)` -> float32, `(x - mean) / std` of ImageNet on the scale 0..255.

    `sizes` `(N, 2)` are the heights and widths of the real images; what lies below and right of them becomes 0, the
    mean colour, because mmsegmentation pads after normalising.
    """
    mean, std = _statistics(images.device)
    x = (images.float() - mean) / std
    if sizes is None:
        return x
    sizes = sizes.to(images.device)
    rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]
    columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]
    return x * (rows[:, None, :, None] & columns[:, None, None, :])


@cache  # a copy to the device for every batch would wait for the device
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(MEAN_RGB, device=device).view(1, 3, 1, 1),
        torch.tensor(STD_RGB, device=device).view(1, 3, 1, 1),
    )
