"""Pictures a person can judge a segmentation by: colours, overlays, and a panel of image, truth, prediction, errors."""

import re
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitrail.config import IGNORE_INDEX

Pixels = NDArray[np.uint8]
Palette = Sequence[Sequence[int]]

# MLflow shows a panel at 256 pixels: at this width letters keep 9 of them, and four tiles a size that shows shapes.
_TILE_WIDTH = 320
_TEXT_SIZE = 25
_ROW_HEIGHT = 34
_LEGEND_COLUMNS = 3
_MAX_LEGEND_ENTRIES = 12
_ERROR_COLOR = (235, 40, 40)


def colorize(label: NDArray[np.integer], palette: Palette) -> Pixels:
    """Colours of a label map (H, W) of train ids, as RGB (H, W, 3); ignored pixels are black."""
    table = np.zeros((IGNORE_INDEX + 1, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    colors: Pixels = table[label]
    return colors


def overlay(image: Pixels, label: NDArray[np.integer], palette: Palette, alpha: float = 0.5) -> Pixels:
    """RGB image (H, W, 3) with the colours of its label map (H, W) over it; ignored pixels keep the image."""
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(label, palette), alpha, 0)
    return np.where((label == IGNORE_INDEX)[..., None], image, mixed).astype(np.uint8)


def prediction_panel(
    image: Pixels,
    label: NDArray[np.integer],
    prediction: NDArray[np.integer],
    palette: Palette,
    classes: Sequence[str],
) -> Pixels:
    """Image, ground truth, prediction and errors in a square of four, with a legend of the classes that occur.

    RGB, 640 pixels wide, made to be read at 256. `label` and `prediction` are (H, W) train ids. Errors are red,
    over a faint image; pixels without a label are black.
    """
    tiles = [
        _tile(image, "image"),
        _tile(colorize(label, palette), "truth"),
        _tile(colorize(prediction, palette), "prediction"),
        _tile(_errors(image, label, prediction), "errors"),
    ]
    return _square(tiles, _legend((label, prediction), palette, classes))


def disagreement_panel(
    image: Pixels,
    label: NDArray[np.integer],
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    palette: Palette,
    classes: Sequence[str],
) -> Pixels:
    """Image, ground truth, and what two models make of it, in a square of four, with a legend as `prediction_panel`."""
    tiles = [
        _tile(image, "image"),
        _tile(colorize(label, palette), "truth"),
        _tile(colorize(first, palette), "first"),
        _tile(colorize(second, palette), "second"),
    ]
    return _square(tiles, _legend((label, first, second), palette, classes))


def _square(tiles: Sequence[Pixels], legend: Pixels) -> Pixels:
    return np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:]), legend])


def _errors(image: Pixels, label: NDArray[np.integer], prediction: NDArray[np.integer]) -> Pixels:
    shown = (image // 3 + 40).astype(np.uint8)
    shown[label != prediction] = _ERROR_COLOR
    shown[label == IGNORE_INDEX] = 0
    return shown


def _tile(rgb: Pixels, title: str) -> Pixels:
    """A tile as wide as all others and at most as high as it is wide; a tall picture stands in its middle."""
    scale = _TILE_WIDTH / max(rgb.shape[:2])
    width, height = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    # Area averages mix colours at borders where a picture shrinks; nearest pixels keep the colours of the legend.
    mode = cv2.INTER_AREA if title == "image" else cv2.INTER_NEAREST
    tile = Image.new("RGB", (_TILE_WIDTH, height))
    tile.paste(Image.fromarray(cv2.resize(rgb, (width, height), interpolation=mode)), ((_TILE_WIDTH - width) // 2, 0))
    draw = ImageDraw.Draw(tile)
    box = draw.textbbox((8, 4), title, font=_font())
    draw.rectangle((0, 0, box[2] + 8, box[3] + 6), fill=(0, 0, 0))
    draw.text((8, 4), title, font=_font(), fill=(255, 255, 255))
    draw.rectangle((0, 0, _TILE_WIDTH - 1, height - 1), outline=(255, 255, 255))
    return np.asarray(tile)


def _legend(maps: Sequence[NDArray[np.integer]], palette: Palette, classes: Sequence[str]) -> Pixels:
    """A swatch and a name for each class in one of the maps, the first of which is the truth; the largest first."""
    present = _by_size(maps, len(classes))
    entries = present[:_MAX_LEGEND_ENTRIES]
    rows = -(-len(entries) // _LEGEND_COLUMNS)
    width = 2 * _TILE_WIDTH
    image = Image.new("RGB", (width, rows * _ROW_HEIGHT + 8), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for position, index in enumerate(entries):
        row, column = divmod(position, _LEGEND_COLUMNS)
        x, y = column * width // _LEGEND_COLUMNS + 6, row * _ROW_HEIGHT + 6
        draw.rectangle((x, y, x + 26, y + _ROW_HEIGHT - 8), fill=tuple(palette[index]), outline=(0, 0, 0))
        cut = len(present) > len(entries) and position == len(entries) - 1
        name = _short(classes[index]) + (" ..." if cut else "")
        draw.text((x + 34, y - 2), name, font=_font(), fill=(0, 0, 0))
        if column:  # a name that is too long ends at the next column
            draw.line((x - 6, y - 6, x - 6, y + _ROW_HEIGHT), fill=(255, 255, 255), width=4)
    return np.asarray(image)


def _by_size(maps: Sequence[NDArray[np.integer]], num_classes: int) -> list[int]:
    labelled = maps[0] != IGNORE_INDEX
    seen = np.concatenate([each[labelled].ravel() for each in maps])
    counts = np.bincount(seen, minlength=num_classes)[:num_classes]
    return [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]


def _short(name: str) -> str:
    """The first of ADE20K's synonyms, at most 13 letters of it."""
    first = re.split(r"[;,]", name)[0].strip()
    return first if len(first) <= 13 else first[:12] + "."


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT_SIZE)
