"""The photometric distortion of SSD (Liu et al. 2016) as mmsegmentation does it: in uint8, truncated at each step."""

from dataclasses import dataclass

import cv2
import numpy as np

from vitrail.data.codec import UInt8Array

_BRIGHTNESS = 32.0
_CONTRAST = (0.5, 1.5)
_SATURATION = (0.5, 1.5)
_HUE = 18


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """The random decisions of one distortion; None leaves a step out."""

    brightness: float | None = None
    """Added, in grey levels."""
    contrast: float | None = None
    contrast_first: bool = True
    """Contrast before the colour steps, or after them."""
    saturation: float | None = None
    hue: int | None = None
    """Added to OpenCV's hue of 0..179."""


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Each step with probability 1/2, its strength uniform."""
    brightness, contrast, saturation, hue, first = (rng.random(5) < 0.5).tolist()
    strengths = rng.random(3).tolist()
    shift = int(rng.integers(-_HUE, _HUE))
    return Distortion(
        brightness=_between(-_BRIGHTNESS, _BRIGHTNESS, strengths[0]) if brightness else None,
        contrast=_between(*_CONTRAST, strengths[1]) if contrast else None,
        contrast_first=first,
        saturation=_between(*_SATURATION, strengths[2]) if saturation else None,
        hue=shift if hue else None,
    )


def distort(image: UInt8Array, distortion: Distortion) -> UInt8Array:
    """The RGB image (H, W, 3) after all steps; the same array where there are none."""
    before, after = _LEVELS, _LEVELS
    if distortion.brightness is not None:
        before = _scaled(before, 1.0, distortion.brightness)
    if distortion.contrast is not None and distortion.contrast_first:
        before = _scaled(before, distortion.contrast, 0.0)
    elif distortion.contrast is not None:
        after = _scaled(after, distortion.contrast, 0.0)
    image = _look_up(image, before)
    if distortion.saturation is not None:
        image = _look_up_hsv(image, 1, _scaled(_LEVELS, distortion.saturation, 0.0))
    if distortion.hue is not None:
        # A trip of its own: what the way back to RGB rounds away, mmsegmentation loses too.
        image = _look_up_hsv(image, 0, ((_LEVELS.astype(np.int64) + distortion.hue) % 180).astype(np.uint8))
    return _look_up(image, after)


_LEVELS = np.arange(256, dtype=np.uint8)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _scaled(levels: UInt8Array, alpha: float, beta: float) -> UInt8Array:
    """Grey levels times alpha plus beta, clipped and truncated; a table in place of arithmetic on every pixel."""
    values = levels.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def _look_up(image: UInt8Array, table: UInt8Array) -> UInt8Array:
    return image if table is _LEVELS else np.asarray(cv2.LUT(image, table), np.uint8)


def _look_up_hsv(image: UInt8Array, channel: int, table: UInt8Array) -> UInt8Array:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    # In place, and the one channel alone: a third of the time of splitting and merging all three.
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv), np.uint8)
