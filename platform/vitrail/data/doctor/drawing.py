"""Draws masks over images for people. Ignored pixels are hatched, so that they are told from any class's colour."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from vitrail.config import IGNORE_INDEX
from vitrail.data.codec import UInt8Array
from vitrail.data.layout import Colour

WRONG_COLOUR: Colour = (255, 0, 255)
"""Of ids that no class has."""

_HATCH = 8  # pixels from line to line at least


def draw_mask(label: NDArray[np.integer], palette: Sequence[Colour]) -> UInt8Array:
    """RGB (H, W, 3) of train ids (H, W): the classes' colours, ignored pixels black, other ids magenta."""
    table = np.full((IGNORE_INDEX + 1, 3), WRONG_COLOUR, np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    table[IGNORE_INDEX] = 0
    colours: UInt8Array = table[label]
    return colours


def draw_overlay(image: UInt8Array, label: NDArray[np.integer], palette: Sequence[Colour]) -> UInt8Array:
    """RGB image (H, W, 3) under the colours of its train ids (H, W), hatched where they are ignored."""
    mixed = cv2.addWeighted(image, 0.4, draw_mask(label, palette), 0.6, 0)
    mixed[label >= len(palette)] = WRONG_COLOUR
    return np.where((label == IGNORE_INDEX)[..., None], hatched(image), mixed).astype(np.uint8)


def hatched(image: UInt8Array) -> UInt8Array:
    """The image, paler, with thin diagonal lines."""
    pale = cv2.addWeighted(image, 0.55, np.full_like(image, 255), 0.45, 0)
    step = max(_HATCH, min(image.shape[:2]) // 40)
    diagonal = np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])) % step
    pale[diagonal < max(1, step // 6)] = (60, 60, 60)
    return np.asarray(pale, np.uint8)


def shrunk(picture: UInt8Array, height: int) -> UInt8Array:
    """The picture at most `height` high and twice as wide, its aspect kept."""
    scale = min(height / picture.shape[0], 2 * height / picture.shape[1])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST), np.uint8
    )


def printable(text: str, length: int) -> str:
    """The text as it can be drawn: without control characters, and its end where it is longer than `length`."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else "…" + text[1 - length :]
