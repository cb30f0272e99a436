"""3x3 convolutions of upsampled maps, computed at the size that the maps have before they are upsampled.

Upsampling mixes pixels, the taps of a convolution mix channels, and the two commute: so the taps, which cost most, are
applied to the small map, and each tap's result is then upsampled, shifted and added. For an upsampling by 2 that is a
quarter of the multiplications, for one by 4 a sixteenth; neither the upsampled maps nor their concatenation exist.
Nothing is approximated: the result is that of mmsegmentation to within rounding.

The matrices are made for one size. In a graph for maps of any size the order is the plain one: upsample, then convolve.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitrail.models.layers import resize, sizes_are_open, upsampling_matrix

Size = tuple[int, int]
"""(height, width)"""

_TAPS = 3
_MIN_GAIN = 2.0
"""Pixels of the resized map per pixel of the map from which on the small map is the cheaper place."""


def conv_of_resized(levels: Sequence[Tensor], conv: nn.Conv2d, size: Size) -> Tensor:
    """`conv(torch.cat([resize(level, size) for level in levels], dim=1))` of a 3x3 convolution with padding 1.

    Levels `(N, C_i, h_i, w_i)` -> `(N, conv.out_channels, *size)`.
    """
    as_they_are: list[Tensor] = []
    weights: list[Tensor] = []
    upsampled: list[Tensor] = []
    for level, weight in zip(levels, torch.split(conv.weight, [x.shape[1] for x in levels], dim=1), strict=True):
        if _is_smaller(level, size):
            vertical = _taps_of_upsampling(level.shape[2], size[0], None, level.dtype, level.device)
            horizontal = _taps_of_upsampling(level.shape[3], size[1], None, level.dtype, level.device)
            upsampled.append(_conv_small(level, weight, vertical, horizontal))
        else:
            as_they_are.append(resize(level, size))
            weights.append(weight)
    if as_they_are:
        full = F.conv2d(torch.cat(as_they_are, dim=1), torch.cat(weights, dim=1), padding=1)
        upsampled.append(full)
    total = upsampled[0]
    for part in upsampled[1:]:
        total = total + part
    return total if conv.bias is None else total + conv.bias[:, None, None]


def conv_of_scaled(x: Tensor, conv: nn.Conv2d, scale: float) -> Tensor:
    """`conv(F.interpolate(x, scale_factor=scale, mode="bilinear"))` of a 3x3 convolution with padding 1.

    `(N, C, h, w)` -> `(N, conv.out_channels, floor(h * scale), floor(w * scale))`. Scaling by a factor is not resizing
    to a size: on odd sizes the sampling step is exactly 1 / scale.
    """
    if scale * scale < _MIN_GAIN or sizes_are_open():
        x = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        return conv(x)  # type: ignore[no-any-return]
    vertical, horizontal = (_taps_of_upsampling(n, None, scale, x.dtype, x.device) for n in x.shape[-2:])
    y = _conv_small(x, conv.weight, vertical, horizontal)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def _is_smaller(level: Tensor, size: Size) -> bool:
    if sizes_are_open():
        return False
    height, width = level.shape[-2:]
    return height <= size[0] and width <= size[1] and size[0] * size[1] >= _MIN_GAIN * height * width


def _conv_small(x: Tensor, weight: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """`(N, C, h, w)`, `(O, C, 3, 3)`, `(3, H, h)`, `(3, W, w)` -> `(N, O, H, W)` as channels-last."""
    (count, channels, height, width), out_channels = x.shape, weight.shape[0]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    rows: Tensor | None = None
    for tap in range(_TAPS):
        # One row of taps: its three columns, side by side, as one matrix.
        taps = weight[:, :, tap].permute(1, 2, 0).reshape(channels, _TAPS * out_channels)
        small = (pixels @ taps).view(count, height, width * _TAPS * out_channels)
        batch = vertical[tap].expand(count, -1, -1)
        rows = torch.bmm(batch, small) if rows is None else torch.baddbmm(rows, batch, small)
    assert rows is not None
    out_height, out_width = vertical.shape[1], horizontal.shape[1]
    # (W, 3) sources per column: the pixel's three column taps lie beside each other in `rows`.
    across = horizontal.permute(1, 2, 0).reshape(out_width, width * _TAPS)
    y = torch.bmm(across.expand(count * out_height, -1, -1), rows.view(-1, width * _TAPS, out_channels))
    return y.view(count, out_height, out_width, out_channels).permute(0, 3, 1, 2)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@lru_cache(maxsize=256)  # a copy to the device for every batch would wait for the device
def _taps_of_upsampling(
    length: int, to: int | None, scale: float | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`(3, L, length)`: `upsampling_matrix` seen through each tap of a 3-wide window.

    Row `i` of tap `t` is the upsampled map's row `i + t - 1`; zero outside it, which is the convolution's padding.
    """
    with torch.inference_mode(False):  # what is kept must also do for training
        upsampled = upsampling_matrix(length, to=to, scale=scale)
        padded = F.pad(upsampled, (0, 0, 1, 1))
        return torch.stack([padded[tap : tap + len(upsampled)] for tap in range(_TAPS)]).to(device, dtype)
