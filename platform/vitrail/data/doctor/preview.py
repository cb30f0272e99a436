"""Draws a contact sheet of the crops that a training run begins with, so that people see what the model will see.

    sheet = draw_first_crops("SRC", recipe.transforms, count=12, seed=0)    # RGB, (H, W, 3)

Of a source folder or a prepared data set; the same picture for the same data, transforms and seed.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitrail.config import IGNORE_INDEX, TransformConfig
from vitrail.data.batch import Crop, SampleLoader
from vitrail.data.codec import UInt8Array
from vitrail.data.doctor.drawing import draw_overlay, hatched, printable
from vitrail.data.doctor.examples import SourceSamples
from vitrail.data.layout import SPLITS, Colour, read_layout
from vitrail.data.manifest import MANIFEST_NAME, Manifest
from vitrail.data.order import SampleOrder
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError

_TILE = 232
_GAP = 10
_CAPTION_HEIGHT = 24
_TEXT_SIZE = 14
_LEGEND_HEIGHT = 24
_LEGEND_CELL = 160
_LEGEND_ENTRIES = 24
_PAPER = (250, 250, 248)
_PADDING = (226, 226, 222)


def draw_first_crops(place: Place, transforms: TransformConfig, *, count: int, seed: int) -> UInt8Array | None:
    """A contact sheet of the first `count` crops that training with `seed` sees; faulty samples are passed over.

    None where no sample is left to show.
    """
    folder = Folder.at(place)
    samples: ShardReader | SourceSamples
    if folder.size_bytes(MANIFEST_NAME) is None:
        layout = read_layout(folder)
        split = _preview_split({name: len(pairs) for name, pairs in layout.splits.items()})
        samples, palette, classes = SourceSamples(layout, split), layout.classes.palette, layout.classes.names
    else:
        manifest = Manifest.load(folder)
        split = _preview_split({name: split.num_samples for name, split in manifest.splits.items()})
        samples, palette, classes = ShardReader(folder, split), manifest.palette, manifest.classes
    if not len(samples):
        return None
    load = SampleLoader(samples, transforms, seed=seed)
    crops = _first_crops(load, SampleOrder(len(samples), seed), count)
    return contact_sheet(crops, palette, classes, crop_size=transforms.crop_size) if crops else None


def _first_crops(load: SampleLoader, order: SampleOrder, count: int) -> list[tuple[int, Crop]]:
    """(epoch, crop) in the order of training; fewer than `count` where an epoch more does not hold as many."""
    crops: list[tuple[int, Crop]] = []
    for step in range(count + order.num_samples):
        if len(crops) == count:
            break
        ((epoch, index),) = order.global_batch(step, 1)
        with suppress(DataError):
            crops.append((epoch, load(epoch, index)))
    return crops


def contact_sheet(
    crops: Sequence[tuple[int, Crop]],
    palette: Sequence[Colour],
    classes: Sequence[str],
    *,
    crop_size: int,
    columns: int = 3,
) -> UInt8Array:
    """RGB picture of crops, given with their epochs: each plain, and under its mask's colours.

    Crops smaller than `crop_size` are shown in their place of the padded square that the model gets.
    """
    cells, pixels = [], Counter[int]()
    for epoch, crop in crops:
        values, counts = np.unique(crop.label, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        overlay = draw_overlay(crop.image, crop.label, palette)
        tiles = [_square(part, crop_size) for part in (crop.image, overlay)]
        cells.append(_captioned(_spaced(tiles, gap=4), f"{crop.id}  epoch {epoch}"))
    columns = min(columns, len(cells))
    cells += [np.full_like(cells[0], _PAPER)] * (-len(cells) % columns)
    rows = [_spaced(cells[start : start + columns], gap=2 * _GAP) for start in range(0, len(cells), columns)]
    present = [value for value, _ in pixels.most_common() if value != IGNORE_INDEX]
    return _framed([*rows, _legend(present, palette, classes, width=rows[0].shape[1])])


def _preview_split(splits: dict[str, int]) -> str:
    """The split to show crops of: training, or the first that has samples."""
    return next((name for name in (*SPLITS, *splits) if splits.get(name)), next(iter(splits)))


def _square(picture: UInt8Array, crop_size: int) -> UInt8Array:
    """A tile of the padded crop, the picture at its top left."""
    height, width = (max(1, round(side * _TILE / crop_size)) for side in picture.shape[:2])
    tile = np.full((_TILE, _TILE, 3), _PADDING, np.uint8)
    shrinks = crop_size > _TILE
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    tile[:height, :width] = cv2.resize(picture, (width, height), interpolation=mode)[:_TILE, :_TILE]
    return tile


def _captioned(tiles: UInt8Array, text: str) -> UInt8Array:
    caption = Image.new("RGB", (tiles.shape[1], _CAPTION_HEIGHT), _PAPER)
    shown = printable(text, tiles.shape[1] * 2 // _TEXT_SIZE)
    ImageDraw.Draw(caption).text((0, 4), shown, font=_font(), fill=(40, 40, 40))
    return np.vstack([tiles, np.asarray(caption)])


def _spaced(cells: Sequence[UInt8Array], *, gap: int) -> UInt8Array:
    space = np.full((cells[0].shape[0], gap, 3), _PAPER, np.uint8)
    parts = [part for cell in cells for part in (space, cell)][1:]
    return np.hstack(parts)


def _framed(rows: Sequence[UInt8Array]) -> UInt8Array:
    sheet = np.vstack(rows)
    framed = np.full((sheet.shape[0] + 2 * _GAP, sheet.shape[1] + 2 * _GAP, 3), _PAPER, np.uint8)
    framed[_GAP:-_GAP, _GAP:-_GAP] = sheet
    return framed


def _legend(present: Sequence[int], palette: Sequence[Colour], classes: Sequence[str], *, width: int) -> UInt8Array:
    """Swatches and names, the largest class first, and the hatching that stands for ignored."""
    columns = max(1, width // _LEGEND_CELL)
    shown = list(present[:_LEGEND_ENTRIES])
    entries = [("ignored", None), *((classes[value], palette[value]) for value in shown if value < len(classes))]
    image = Image.new("RGB", (width, -(-len(entries) // columns) * _LEGEND_HEIGHT + _GAP), _PAPER)
    draw = ImageDraw.Draw(image)
    for position, (name, colour) in enumerate(entries):
        x, y = position % columns * (width // columns), position // columns * _LEGEND_HEIGHT + _GAP
        if colour is None:
            image.paste(Image.fromarray(hatched(np.full((16, 24, 3), 160, np.uint8))), (x, y))
        draw.rectangle((x, y, x + 23, y + 15), fill=colour, outline=(90, 90, 90))
        draw.text((x + 30, y), printable(name, 18), font=_font(), fill=(40, 40, 40))
    return np.asarray(image)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT_SIZE)
