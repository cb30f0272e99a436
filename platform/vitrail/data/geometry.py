"""Scaling and cropping as mmsegmentation does them, bit for bit, without making pixels that the crop drops.

Random numbers are drawn beforehand (`draw_crop`); what follows is a pure function of them, the image and the label.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vitrail.config import IGNORE_INDEX, TransformConfig
from vitrail.data.codec import UInt8Array

_CROP_TRIES = 11  # ten may be refused for their classes; the eleventh is taken as it is

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, kw_only=True)
class CropDraw:
    """The random numbers of one scale-and-crop: a ratio, and where to look for a crop, in shares of the free play."""

    ratio: float
    places: tuple[tuple[float, float], ...]
    """(down, right), each in [0, 1): 0 is the first offset that fits, just below 1 the last."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of the image scaled to `scaled`, in the scaled image's pixels."""

    scaled: Size
    top: int
    left: int
    height: int
    width: int


def scaled_size(size: Size, scale: tuple[int, int]) -> Size:
    """The largest size of the same aspect within the long and the short bound of `scale` (mmcv `imrescale`)."""
    height, width = size
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: UInt8Array, size: Size) -> UInt8Array:
    """(H, W, 3) at another size, bilinear in OpenCV's fixed-point arithmetic, not antialiased."""
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def resize_label(label: UInt8Array, size: Size) -> UInt8Array:
    """(H, W) at another size, nearest neighbour."""
    return np.asarray(cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def draw_crop(rng: np.random.Generator, config: TransformConfig) -> CropDraw:
    """All random numbers that a crop may need, whatever the image."""
    low, high = config.ratio_range
    ratio, *places = rng.random(1 + 2 * _CROP_TRIES).tolist()
    return CropDraw(
        ratio=low + (high - low) * ratio,
        places=tuple(zip(places[0::2], places[1::2], strict=True)),
    )


def choose_crop(label: UInt8Array, draw: CropDraw, config: TransformConfig) -> tuple[Window, UInt8Array]:
    """The first window of `draw` whose classes are mixed enough, else the last; with it the label (h, w) inside.

    Mixed enough: at least two classes, none of them on `cat_max_ratio` or more of the labelled pixels.
    """
    bounds = (int(config.scale[0] * draw.ratio), int(config.scale[1] * draw.ratio))
    size: Size = (label.shape[0], label.shape[1])
    scaled = scaled_size(size, bounds)
    height, width = min(scaled[0], config.crop_size), min(scaled[1], config.crop_size)
    rows, columns = _nearest(size[0], scaled[0]), _nearest(size[1], scaled[1])
    for number, (down, right) in enumerate(draw.places, start=1):
        top, left = int(down * (scaled[0] - height + 1)), int(right * (scaled[1] - width + 1))
        crop = label.take(rows[top : top + height], 0).take(columns[left : left + width], 1)
        if number == len(draw.places) or config.cat_max_ratio >= 1 or _is_mixed(crop, config.cat_max_ratio):
            break
    return Window(scaled=scaled, top=top, left=left, height=height, width=width), crop


def crop_image(image: UInt8Array, window: Window) -> UInt8Array:
    """(h, w, 3): bit for bit the window of the whole image resized to `window.scaled`."""
    (height, width), (new_height, new_width) = image.shape[:2], window.scaled
    bottom, right = window.top + window.height, window.left + window.width
    # Given as factors, the scale does not depend on the size of what is resized, so source pixels below and right of
    # the window can be left out. Those above and left of it cannot: the sampling phase starts at the origin.
    source = image[: _reach(bottom, height, new_height), : _reach(right, width, new_width)]
    fy, fx = new_height / height, new_width / width
    resized = cv2.resize(source, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized[window.top : bottom, window.left : right], np.uint8)


def _reach(end: int, old: int, new: int) -> int:
    """Source pixels that the first `end` of `new` output pixels need: bilinear looks one further, rounding one more."""
    return min(old, -(-end * old // new) + 2)


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """Source index of each output index, by OpenCV's own rule."""
    indices = np.arange(old, dtype=np.float32)[None]
    return np.asarray(cv2.resize(indices, (new, 1), interpolation=cv2.INTER_NEAREST)[0], np.int64)


def _is_mixed(label: UInt8Array, max_ratio: float) -> bool:
    counts = cv2.calcHist([label], [0], None, [256], [0, 256]).reshape(-1)[:IGNORE_INDEX]
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum(dtype=np.float64) < max_ratio)
