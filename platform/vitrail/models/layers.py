"""What neck and heads are made of: mmcv's ConvModule and the bilinear resize."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class ConvModule(nn.Module):
    """Convolution, BatchNorm and ReLU; `plain`: the convolution alone, with a bias (mmcv 2.1 `ConvModule`)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, plain: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=plain)
        self.bn = None if plain else nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` -> `(N, out_channels, H, W)`"""
        return self.activate(self.conv(x))

    def activate(self, x: Tensor) -> Tensor:
        """What follows the convolution, for who computes that otherwise."""
        return x if self.bn is None else F.relu(self.bn(x), inplace=True)


class AdaptiveAvgPool2d(nn.Module):
    """`nn.AdaptiveAvgPool2d`, which torch cannot export for maps of any size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, h, w)` -> `(N, C, size, size)`"""
        if not sizes_are_open():
            return F.adaptive_avg_pool2d(x, self.size)
        rows, columns = (_averaging_matrix(length, self.size, x) for length in x.shape[-2:])
        return rows @ x @ columns.T


def sizes_are_open() -> bool:
    """Whether a graph for maps of any size is being traced (`torch.export`): then nothing may be decided by a size."""
    return torch.compiler.is_exporting()


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(N, C, h, w)` -> `(N, C, *size)`, bilinear with align_corners=False; `x` itself where it has that size."""
    if not sizes_are_open() and tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def upsampling_matrix(length: int, *, to: int | None = None, scale: float | None = None) -> Tensor:
    """`(L, length)` float64: bilinear resizing along one axis, to a size or by a factor, as torch does it."""
    unit = torch.eye(length, dtype=torch.float64)[None]
    return F.interpolate(unit, size=to, scale_factor=scale, mode="linear", align_corners=False)[0].T.contiguous()


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32 where it is narrower: logits of a half-precision forward pass, before they are interpolated."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _averaging_matrix(length: int, size: int, like: Tensor) -> Tensor:
    """`(size, length)`: row `i` is the mean of `floor(i * length / size)` up to `ceil((i + 1) * length / size)`."""
    cells = torch.arange(size, device=like.device)[:, None]
    start, end = cells * length // size, ((cells + 1) * length + size - 1) // size
    index = torch.arange(length, device=like.device)
    inside = (index >= start) & (index < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)
