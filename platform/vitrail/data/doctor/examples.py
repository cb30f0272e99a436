"""Opens again the few samples that a report shows, those with findings, and draws them, whatever is wrong with them.

    picture = open_illustrator("SRC").picture(ref)          # JPEG of image and mask side by side

`SourceSamples` gives the samples of a source folder that are sound, as they will be once they are prepared.
"""

import io
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitrail.config import IGNORE_INDEX
from vitrail.data.codec import UInt8Array, check_image, decode_image, decode_raw_label
from vitrail.data.doctor.drawing import draw_mask, draw_overlay, shrunk
from vitrail.data.doctor.findings import SampleRef
from vitrail.data.layout import Colour, Layout, Pair, read_layout
from vitrail.data.manifest import MANIFEST_NAME, Manifest
from vitrail.data.shards import Sample, ShardReader
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError

_HEIGHT = 150
_JPEG_QUALITY = 80
_JPEG_END = b"\xff\xd9"


class Illustrator(Protocol):
    """Draws samples of a data set."""

    def picture(self, ref: SampleRef) -> bytes | None:
        """JPEG of image and mask, None where neither can be shown."""


def open_illustrator(place: Place) -> Illustrator:
    """What draws samples of a source folder or a prepared data set."""
    folder = Folder.at(place)
    if folder.size_bytes(MANIFEST_NAME) is None:
        return SourceIllustrator(read_layout(folder))
    return PreparedIllustrator(folder, Manifest.load(folder))


class SourceSamples:
    """Samples of one split of a source folder, as a `ShardReader` gives those of a prepared data set."""

    def __init__(self, layout: Layout, split: str) -> None:
        self._layout, self._pairs = layout, layout.splits[split]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`.

        Raises:
            DataError: it cannot be used for training; pipelines/prepare.py would say the same.
        """
        pair = self._pairs[index]
        try:
            data, mask = (self._layout.folder.read(name) for name in (pair.image, pair.label))
        except OSError as error:
            raise DataError(f"{pair.image} or its mask cannot be read ({error.strerror or error})") from None
        check_image(data)
        image, label = decode_image(data), train_ids(decode_raw_label(mask), self._layout)
        if image.shape[:2] != label.shape:
            raise DataError(f"{pair.label} is not of its image's size")
        if ((label >= len(self._layout.classes.names)) & (label != IGNORE_INDEX)).any():
            raise DataError(f"{pair.label} has ids of no class")
        return Sample(id=pair.id, image=image, label=label)


def train_ids(raw: NDArray[np.int64], layout: Layout) -> UInt8Array:
    """Train ids; ids above the classes become one that no class has, 254 at most."""
    ids = raw - layout.classes.raw_offset
    ignored = (ids < 0) | (raw == IGNORE_INDEX)
    return np.where(ignored, IGNORE_INDEX, np.minimum(ids, IGNORE_INDEX - 1)).astype(np.uint8)


class SourceIllustrator:
    """Draws samples of a source folder."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def picture(self, ref: SampleRef) -> bytes | None:
        """Image and mask as far as they can be decoded."""
        pair = self._layout.splits[ref.split][ref.index]
        image, (label, drawn) = self._image(pair), self._mask(pair)
        return _side_by_side(image, label, drawn, self._layout.classes.palette)

    def _image(self, pair: Pair) -> UInt8Array | None:
        """The pixels; of a truncated JPEG those that there are, over grey."""
        try:
            data = self._layout.folder.read(pair.image)
        except OSError:
            return None
        for end in (b"", _JPEG_END):
            try:
                return decode_image(data + end)
            except DataError:
                continue
        return None

    def _mask(self, pair: Pair) -> tuple[UInt8Array | None, UInt8Array | None]:
        """Train ids of a mask, or the colours of one that holds colours."""
        try:
            data = self._layout.folder.read(pair.label)
            return train_ids(decode_raw_label(data), self._layout), None
        except OSError:
            return None, None
        except DataError:
            return None, _colours(data)


class PreparedIllustrator:
    """Draws samples of a prepared data set."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._readers = {split: ShardReader(folder, split) for split in manifest.splits}
        self._palette = manifest.palette

    def picture(self, ref: SampleRef) -> bytes | None:
        """Image and mask, None where the shard is damaged."""
        try:
            sample = self._readers[ref.split][ref.index]
        except DataError:
            return None
        return _side_by_side(sample.image, sample.label, None, self._palette)


def _colours(data: bytes) -> UInt8Array | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _side_by_side(
    image: UInt8Array | None, label: UInt8Array | None, drawn: UInt8Array | None, palette: tuple[Colour, ...]
) -> bytes | None:
    parts = [] if image is None else [image]
    if label is not None:
        fits = image is not None and image.shape[:2] == label.shape
        parts.append(draw_overlay(image, label, palette) if fits and image is not None else draw_mask(label, palette))
    elif drawn is not None:
        parts.append(drawn)
    if not parts:
        return None
    small = [shrunk(part, _HEIGHT) for part in parts]
    height = max(part.shape[0] for part in small)
    padded = [cv2.copyMakeBorder(p, 0, height - p.shape[0], 0, 4, cv2.BORDER_CONSTANT, value=(255,) * 3) for p in small]
    rgb = np.hstack(padded)[:, :-4]
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data.tobytes())
