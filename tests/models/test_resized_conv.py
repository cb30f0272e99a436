"""Convolutions computed before upsampling against the same in the plain order, values and gradients, in float64."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitrail.models.resized_conv import conv_of_resized, conv_of_scaled

SIZES = {
    "pyramid": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "pooled": [(12, 12), (1, 1), (2, 2), (3, 3), (6, 6)],
    "odd": [(15, 22), (7, 11), (3, 5)],
    "all of one size": [(9, 9), (9, 9)],
    "one larger, one in one direction only": [(8, 8), (16, 16), (8, 2), (16, 2)],
    "only smaller ones": [(8, 8), (4, 4)],
}


def compare(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(plain)
    found = torch.autograd.grad(ours, inputs, upstream)
    expected = torch.autograd.grad(plain, inputs, upstream)
    for ours_one, expected_one in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_one, expected_one, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_convolution_of_resized_levels_equals_the_plain_order(sizes: list[tuple[int, int]], bias: bool) -> None:
    torch.manual_seed(0)
    skip = sizes[0] if sizes == SIZES["only smaller ones"] else None
    levels = [torch.randn(2, 3 + i, *size).double().requires_grad_() for i, size in enumerate(sizes) if size != skip]
    conv = nn.Conv2d(sum(level.shape[1] for level in levels), 5, 3, padding=1, bias=bias).double()
    resized = [F.interpolate(level, size=sizes[0], mode="bilinear", align_corners=False) for level in levels]
    compare(conv_of_resized(levels, conv, sizes[0]), conv(torch.cat(resized, dim=1)), [*levels, *conv.parameters()])


@pytest.mark.parametrize("scale", [4.0, 2.0, 1.5, 1.0, 0.5])
@pytest.mark.parametrize("size", [(6, 8), (7, 11), (1, 5)])
def test_convolution_of_a_scaled_map_equals_the_plain_order(size: tuple[int, int], scale: float) -> None:
    if min(size) * scale < 1:
        pytest.skip("nothing would be left")
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).double().requires_grad_()
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    scaled = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    compare(conv_of_scaled(x, conv, scale), conv(scaled), [x, *conv.parameters()])


def test_no_upsampled_map_is_kept_for_the_gradient() -> None:
    level = torch.randn(1, 8, 8, 8, requires_grad=True)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept = max(kept, tensor.numel() if tensor.shape[0] == 1 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        conv_of_resized([level], conv, (64, 64))
    assert 0 < kept <= level.numel()
