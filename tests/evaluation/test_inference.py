"""Whole, sliding and multi-scale inference with models whose output is known."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitrail.config import SlideInferenceConfig, WholeInferenceConfig
from vitrail.errors import UsageError
from vitrail.evaluation.inference import (
    MultiScaleFlip,
    ScaleToBounds,
    ScaleToOriginal,
    SlideInference,
    WholeInference,
    build_inference,
    build_ms_flip,
)
from vitrail.overrides import override
from vitrail.recipes import get_recipe


class Recorder(nn.Module):
    """Returns the images as logits, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x


class WindowMean(nn.Module):
    """One logit per window: its mean, so that averaging over windows shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)


def test_configs_build_their_inference() -> None:
    assert build_inference(WholeInferenceConfig()) == WholeInference()
    assert build_inference(SlideInferenceConfig(crop_size=64, stride=32)) == SlideInference(crop_size=64, stride=32)


def test_whole_resizes_to_the_input_first_and_then_to_the_original() -> None:
    x = torch.randn(1, 3, 40, 56)
    half = nn.AvgPool2d(2)
    steps = F.interpolate(F.interpolate(half(x), size=(40, 56), mode="bilinear"), size=(81, 33), mode="bilinear")
    assert torch.equal(WholeInference()(half, x, (81, 33)), steps)
    assert not torch.allclose(steps, F.interpolate(half(x), size=(81, 33), mode="bilinear"))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 100), (130, 64), (40, 90), (33, 20)])
@pytest.mark.parametrize(("crop", "stride"), [(64, 40), (64, 64), (48, 7)])
def test_slide_equals_a_loop_over_pixels_windows(height: int, width: int, crop: int, stride: int) -> None:
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    total, count = torch.zeros_like(x), torch.zeros(height, width, dtype=torch.float64)
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            total[..., top:bottom, left:right] += x[..., top:bottom, left:right].mean((2, 3), keepdim=True)
            count[top:bottom, left:right] += 1
    assert count.min() > 0
    ours = SlideInference(crop_size=crop, stride=stride)(WindowMean(), x, (height, width))
    assert torch.allclose(ours, total / count, atol=1e-12)


def test_slide_shows_the_network_no_larger_window_than_its_crop() -> None:
    recorder = Recorder()
    SlideInference(crop_size=32, stride=20)(recorder, torch.randn(2, 3, 50, 70), (50, 70))
    assert set(recorder.seen) == {(2, 3, 32, 32)}


@pytest.mark.parametrize("stride", [0, 65])
def test_slide_refuses_strides_that_leave_gaps(stride: int) -> None:
    with pytest.raises(UsageError, match="stride"):
        SlideInference(crop_size=64, stride=stride)


def test_sizes_follow_the_two_generations() -> None:
    assert ScaleToBounds()(600, 800, 0.5) == (256, 341)
    assert ScaleToBounds()(500, 4000, 1.0) == (256, 2048)  # the long side is bounded too
    assert ScaleToOriginal()(600, 800, 0.5) == (300, 400)


def test_multi_scale_flip_averages_probabilities_and_undoes_the_flip() -> None:
    recorder = Recorder()
    tta = MultiScaleFlip(ratios=(0.5, 1.0), sizes=ScaleToOriginal())
    x = torch.randn(1, 3, 32, 48)
    views = [F.interpolate(x, size=size, mode="bilinear", antialias=True) for size in tta.view_sizes(32, 48)]
    probabilities = tta(recorder, iter(views), (32, 48))
    # A model that maps every pixel alone gives the same with and without the flip.
    want = [F.interpolate(view, size=(32, 48), mode="bilinear").softmax(1) for view in views]
    assert torch.allclose(probabilities, (want[0] + want[1]) / 2, atol=1e-6)
    assert [shape[2:] for shape in recorder.seen] == [(16, 24), (16, 24), (32, 48), (32, 48)]
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 32, 48))


def test_multi_scale_flip_sees_both_directions() -> None:
    class LeftHalf(nn.Module):
        """Tells the left half of what it sees from the right."""

        def forward(self, x: Tensor) -> Tensor:
            left = torch.zeros_like(x[:, :2])
            left[:, 0, :, : x.shape[-1] // 2] = 100.0
            return left

    probabilities = MultiScaleFlip(ratios=(1.0,))(LeftHalf(), [torch.randn(1, 3, 4, 8)], (4, 8))
    assert torch.allclose(probabilities[:, 0, :, :4], torch.tensor((1.0 + 0.5) / 2))


def test_logits_of_half_precision_are_interpolated_in_float32() -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    assert WholeInference()(nn.AvgPool2d(2), x, (8, 8)).dtype == torch.float32


def test_recipe_chooses_what_the_scales_of_ms_flip_are_relative_to() -> None:
    recipe = get_recipe("upernet_vit-nano_128x128_1k")
    published = build_ms_flip(recipe)
    assert published.view_sizes(300, 400)[0] == (64, 85)  # half of 128, the test scale's short side
    newer = build_ms_flip(
        override(recipe, ["ms_flip.relative_to=image", "ms_flip.ratios=[0.5,1]", "ms_flip.flip=false"])
    )
    assert newer.view_sizes(300, 400) == [(150, 200), (300, 400)]
    assert not newer.flip
