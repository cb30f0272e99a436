"""From normalised images to logits at the original size: whole, in sliding windows, or over scales and flips.

logits = SlideInference(crop_size=512, stride=341)(model, images, out_size=(600, 900))
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitrail.config import Inference, Recipe, SlideInferenceConfig
from vitrail.errors import UsageError
from vitrail.models.layers import full_precision, resize

Size = tuple[int, int]
"""(height, width)"""
Network = Callable[[Tensor], Tensor]
"""Normalised images `(N, 3, H, W)` -> logits `(N, K, h, w)`: a segmentor, or what calls one."""

MAX_PIECE_BYTES = 2**27
"""Of the interpolated logits that `resized_argmax` holds at once; one class is interpolated whole in any case."""


class InferenceMode(Protocol):
    """How a network is shown normalised images `(N, 3, H, W)`."""

    def logits(self, model: Network, images: Tensor) -> Tensor:
        """float32 logits `(N, K, h, w)`, to be resized to the size of the images, and from there to the original's."""
        ...

    def __call__(self, model: Network, images: Tensor, out_size: Size) -> Tensor:
        """Logits `(N, K, *out_size)`"""
        ...


class SizeRule(Protocol):
    """Height and width of an image of `height` x `width` in the view of one scale ratio."""

    def __call__(self, height: int, width: int, ratio: float) -> Size: ...


def build_inference(config: Inference) -> InferenceMode:
    """The inference that a recipe names."""
    if isinstance(config, SlideInferenceConfig):
        return SlideInference(crop_size=config.crop_size, stride=config.stride)
    return WholeInference()


def build_ms_flip(recipe: Recipe) -> "MultiScaleFlip":
    """The multi-scale and flip inference that a recipe describes, around its own inference."""
    config = recipe.ms_flip
    return MultiScaleFlip(
        inference=build_inference(recipe.inference),
        sizes=ScaleToOriginal() if config.relative_to == "image" else ScaleToBounds(recipe.transforms.scale),
        ratios=config.ratios,
        flip=config.flip,
    )


@dataclass(frozen=True)
class WholeInference:
    """The network sees the whole image at once (mmsegmentation's `mode='whole'`)."""

    def logits(self, model: Network, images: Tensor) -> Tensor:
        """The network's own, not yet of the images' size: their padding inside the network is a share of them."""
        return full_precision(model(images))

    def __call__(self, model: Network, images: Tensor, out_size: Size) -> Tensor:
        """Logits go to the size of the images first, padding included, and from there to `out_size`."""
        return resize(_upsampled(model, images), out_size)


@dataclass(frozen=True, kw_only=True)
class SlideInference:
    """The network sees overlapping windows, whose logits are averaged (mmsegmentation's `mode='slide'`)."""

    crop_size: int = 512
    stride: int = 341

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.crop_size:
            raise UsageError(
                f"stride={self.stride} must be from 1 to crop_size={self.crop_size}, or pixels between the windows "
                "would have no prediction"
            )

    def logits(self, model: Network, images: Tensor) -> Tensor:
        """Of the images' size. The last window of a row or column is moved back inside the image."""
        height, width = images.shape[-2:]
        total = count = None
        for top in self._starts(height):
            for left in self._starts(width):
                bottom, right = min(top + self.crop_size, height), min(left + self.crop_size, width)
                logits = _upsampled(model, images[:, :, top:bottom, left:right])
                if total is None or count is None:
                    total = logits.new_zeros((len(images), logits.shape[1], height, width))
                    count = logits.new_zeros((height, width))
                total[:, :, top:bottom, left:right] += logits
                count[top:bottom, left:right] += 1
        assert total is not None and count is not None
        return total.div_(count)

    def __call__(self, model: Network, images: Tensor, out_size: Size) -> Tensor:
        """Averaged logits at `out_size`."""
        return resize(self.logits(model, images), out_size)

    def _starts(self, length: int) -> list[int]:
        last = max(length - self.crop_size, 0)
        steps = -(-last // self.stride)
        return [min(step * self.stride, last) for step in range(steps + 1)]


@dataclass(frozen=True)
class ScaleToBounds:
    """Sizes relative to the recipe's test scale: mmsegmentation 0.x, which made the published ms+flip numbers."""

    scale: tuple[int, int] = (2048, 512)

    def __call__(self, height: int, width: int, ratio: float) -> Size:
        """The largest size of the image's shape within the two bounds, each times `ratio` and cut to an integer."""
        return _fit(height, width, (int(self.scale[0] * ratio), int(self.scale[1] * ratio)))


@dataclass(frozen=True)
class ScaleToOriginal:
    """Sizes relative to the original image: mmsegmentation 1.x."""

    def __call__(self, height: int, width: int, ratio: float) -> Size:
        """Each side times `ratio`, rounded; then, as mmcv does, the image's shape is fitted into that."""
        return _fit(height, width, (int(width * ratio + 0.5), int(height * ratio + 0.5)))


@dataclass(frozen=True, kw_only=True)
class MultiScaleFlip:
    """Softmax averaged over scales, each as it is and mirrored (mmsegmentation's `--aug-test` and `--tta`).

    The images are resized before, as uint8, to the sizes that `view_sizes` names:

        views = (normalize(resize(image, size)) for size in tta.view_sizes(height, width))
        labels = tta(model, views, out_size=(height, width)).argmax(1)
    """

    inference: InferenceMode = WholeInference()
    sizes: SizeRule = ScaleToBounds()
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True

    def view_sizes(self, height: int, width: int) -> list[Size]:
        """The sizes at which an image of `height` x `width` is wanted, one per ratio."""
        return [self.sizes(height, width, ratio) for ratio in self.ratios]

    def __call__(self, model: Network, views: Iterable[Tensor], out_size: Size) -> Tensor:
        """One normalised tensor `(N, 3, h, w)` per ratio -> probabilities `(N, K, *out_size)`."""
        total, count = None, 0
        for probabilities in self._probabilities(model, views, out_size):
            total = probabilities if total is None else total.add_(probabilities)
            count += 1
        if total is None:
            raise ValueError("MultiScaleFlip needs at least one view")
        return total / count

    def _probabilities(self, model: Network, views: Iterable[Tensor], out_size: Size) -> Iterator[Tensor]:
        for view in views:
            yield self.inference(model, view, out_size).softmax(dim=1)
            if self.flip:
                yield self.inference(model, view.flip(-1), out_size).softmax(dim=1).flip(-1)


def resized_argmax(logits: Tensor, sizes: Sequence[Size], *, max_bytes: int = MAX_PIECE_BYTES) -> Tensor:
    """The likeliest class of each pixel, `(N, K, h, w)` -> `(N, H, W)`, after resizing to each of `sizes` in turn.

    Bit for bit `argmax` of the resized whole, the first of equal classes included: each class is interpolated on its
    own, so they can be done a few at a time. The whole would take 5 GB for 150 classes of a photograph of 8 megapixels.
    """
    bytes_per_class = sum(height * width for height, width in sizes) * len(logits) * logits.element_size()
    step = max(1, max_bytes // bytes_per_class)
    labels, best = _resized_max(logits[:, :step], sizes)
    for start in range(step, logits.shape[1], step):
        index, value = _resized_max(logits[:, start : start + step], sizes)
        # Not `value > best`, because to argmax the first NaN is larger than any number.
        better = ~((value <= best) | best.isnan())
        labels = torch.where(better, index.add_(start), labels)
        best = torch.where(better, value, best)
    return labels


def _resized_max(logits: Tensor, sizes: Sequence[Size]) -> tuple[Tensor, Tensor]:
    for size in sizes:
        logits = resize(logits, size)
    best, labels = logits.max(dim=1)
    return labels, best


def _upsampled(model: Network, images: Tensor) -> Tensor:
    """Logits at the size of the images, padding share included: the map is resized, not cropped."""
    return resize(full_precision(model(images)), images.shape[-2:])


def _fit(height: int, width: int, bounds: tuple[int, int]) -> Size:
    """mmcv's `rescale_size`: the largest size with both sides within `bounds`, rounded half up."""
    factor = min(max(bounds) / max(height, width), min(bounds) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)
