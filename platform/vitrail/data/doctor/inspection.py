"""Looks closely at one sample: the bytes of an image and its mask in, a small record without pixels out.

    record = inspect_pair(Folder.at("SRC"), "training", 0, pair, IdRange(1, 150))

A record is what travels back from a worker: what is wrong with the sample, its size, hashes and pixels per id.
"""

import hashlib
import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from vitrail.config import IGNORE_INDEX
from vitrail.data.codec import UInt8Array, check_image, decode_image, decode_raw_label
from vitrail.data.doctor.findings import Finding, SampleRef
from vitrail.data.layout import Pair
from vitrail.data.shards import Sample, ShardReader
from vitrail.data.storage import Folder
from vitrail.errors import DataError
from vitrail.strict import Strict

TINY_SIDE = 32
"""Shorter sides below this are reported: two patches of the backbone."""

GREY_SIDE = 16
_FLAT = 2.0  # mean step between neighbours of the 9x8 image, in grey levels; below it noise makes the hash
_EXIF_ORIENTATION = 0x0112
_WRONG_IDS_SHOWN = 5
_COLOUR_MODES = ("RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA", "LAB", "HSV")


@dataclass(frozen=True)
class IdRange:
    """The ids that classes have in a mask: `first` to `last`. What lies below, and 255, is ignored."""

    first: int
    last: int


class Record(Strict):
    """What is known of a sample after its pixels are gone."""

    ref: SampleRef
    findings: tuple[Finding, ...] = ()
    size: tuple[int, int] | None = None
    """(height, width) as decoded; None where the image cannot be read."""
    pixel_hash: str = ""
    """Of the decoded pixels; empty where there are none."""
    label_hash: str = ""
    """Of the decoded ids; empty where there are none."""
    dhash: int | None = None
    """64 bits: whether grey rises from left to right, in 8x8 places. None for flat images, which all look alike."""
    grey: str = ""
    """The image at 16x16 in grey, hexadecimal."""
    id_pixels: dict[int, int] = Field(default_factory=dict)
    """Pixels of each id as it is in the mask, 0..255; ids beyond the classes are in the findings."""


def inspect_pair(folder: Folder, split: str, index: int, pair: Pair, ids: IdRange) -> Record:
    """What is to be said of an image and its mask in a source folder."""
    notes = _Notes(SampleRef(split=split, index=index, path=pair.image))
    image = _read_image(folder, pair.image, notes)
    label = _read_label(folder, pair.label, notes)
    if image is not None and label is not None and image.shape[:2] != label.shape:
        notes.add("size_mismatch", pair.label, _mismatch(image, label))
    return _record(image, label, ids, notes, label_path=pair.label)


def inspect_rows(reader: ShardReader, rows: range) -> list[Record]:
    """What is to be said of the samples `rows`, which are one shard's."""
    ids = IdRange(0, reader.manifest.num_classes - 1)
    records: list[Record] = []
    told: set[str] = set()
    for index in rows:
        try:
            sample = reader[index]
        except DataError as error:
            if str(error) in told:  # so it is the shard's fault, and each further row would cost a reading of it
                return records
            told.add(str(error))
            notes = _Notes(SampleRef(split=reader.split, index=index, path=f"{reader.split}, sample {index}"))
            notes.add("damaged_shard", *_damage(error, notes.ref.path))
            records.append(Record(ref=notes.ref, findings=tuple(notes.found)))
        else:
            ref = SampleRef(split=reader.split, index=index, path=f"{reader.split}/{sample.id}")
            records.append(_inspect_sample(sample, ids, _Notes(ref)))
    return records


def difference_hash(grey: UInt8Array) -> int | None:
    """dHash (Krawetz 2013) of a grey image (H, W) as 64 bits; None where neighbours hardly differ."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    steps = np.diff(small, axis=1)
    if np.abs(steps).mean() < _FLAT:
        return None
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


class _Notes:
    """Findings about one sample while they are collected."""

    def __init__(self, ref: SampleRef) -> None:
        self.ref, self.found = ref, list[Finding]()

    def add(self, kind: str, path: str, detail: str) -> None:
        self.found.append(Finding(kind=kind, path=path, detail=detail, samples=(self.ref,)))


def _inspect_sample(sample: Sample, ids: IdRange, notes: _Notes) -> Record:
    path = notes.ref.path
    if sample.image.shape[:2] != sample.label.shape:
        notes.add("size_mismatch", path, _mismatch(sample.image, sample.label))
    return _record(sample.image, sample.label.astype(np.int64), ids, notes, label_path=path)


def _record(
    image: UInt8Array | None, label: NDArray[np.int64] | None, ids: IdRange, notes: _Notes, *, label_path: str
) -> Record:
    pixels = {} if label is None else _count_ids(label, ids, label_path, notes)
    looks = {} if image is None else _looks(image)
    if image is not None and min(image.shape[:2]) < TINY_SIDE:
        notes.add("tiny_image", notes.ref.path, f"is {_words(image)}")
    return Record(
        ref=notes.ref,
        findings=tuple(notes.found),
        label_hash="" if label is None else _hash(label.astype(np.int32)),
        id_pixels=pixels,
        **looks,
    )


def _read_image(folder: Folder, name: str, notes: _Notes) -> UInt8Array | None:
    """The pixels, with what is unusual about the file noted; None, and why, where it cannot be read."""
    try:
        data = folder.read(name)
        check_image(data)
        pixels = decode_image(data)
    except (OSError, DataError) as error:
        notes.add("unreadable_image", name, _reason(error))
        return None
    with Image.open(io.BytesIO(data)) as image:
        mode, orientation = image.mode, image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        notes.add("exif_rotation", name, f"has EXIF orientation {orientation}; turned upright it is {_words(pixels)}")
    if mode in ("1", "L"):
        notes.add("grey_image", name, f"has one channel (mode {mode})")
    elif mode == "CMYK":
        notes.add("cmyk_image", name, "is in CMYK")
    elif mode != "RGB":
        notes.add("unusual_mode", name, f"has mode {mode}")
    return pixels


def _read_label(folder: Folder, name: str, notes: _Notes) -> NDArray[np.int64] | None:
    """The ids of the mask; None, and why, where there are none."""
    mode = ""
    try:
        data = folder.read(name)
        mode = _mode(data)
        if mode == "P":
            notes.add("palette_mask", name, "has a palette; its indices are used")
        return decode_raw_label(data)
    except (OSError, DataError) as error:
        colour = mode in _COLOUR_MODES and "to its end" not in str(error)
        notes.add("colour_mask" if colour else "unreadable_mask", name, _reason(error))
        return None


def _mode(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.mode
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""


def _count_ids(label: NDArray[np.int64], ids: IdRange, path: str, notes: _Notes) -> dict[int, int]:
    """Pixels of each id up to the last class and of 255; ids that no class has are noted."""
    pixels = _pixels_per_id(label)
    wrong = {value: count for value, count in pixels.items() if value > ids.last and value != IGNORE_INDEX}
    if wrong:
        notes.add("id_out_of_range", path, _wrong_ids(label, wrong, ids))
    elif pixels and not any(ids.first <= value <= ids.last for value in pixels if value != IGNORE_INDEX):
        notes.add("unlabelled_mask", path, f"has no labelled pixel, only {' and '.join(map(str, pixels))}")
    # One above the last is kept: it tells whether the masks begin to count at 1.
    return {value: count for value, count in pixels.items() if value <= ids.last + 1 or value == IGNORE_INDEX}


def _pixels_per_id(label: NDArray[np.int64]) -> dict[int, int]:
    if label.max(initial=0) < 1 << 16:  # counting is twenty times as fast as sorting
        counts = np.bincount(label.reshape(-1))
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _wrong_ids(label: NDArray[np.int64], wrong: dict[int, int], ids: IdRange) -> str:
    first = min(wrong)
    y, x = np.argwhere(label == first)[0]
    values = ", ".join(map(str, sorted(wrong)[:_WRONG_IDS_SHOWN])) + (", …" if len(wrong) > _WRONG_IDS_SHOWN else "")
    return (
        f"has {sum(wrong.values()):,} pixels of {values}; the first {first} is at x={x}, y={y}, "
        f"and classes go from {ids.first} to {ids.last}"
    )


def _looks(image: UInt8Array) -> dict[str, object]:
    """Size and hashes of an RGB image (H, W, 3), as fields of a record."""
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    small = cv2.resize(grey, (GREY_SIDE, GREY_SIDE), interpolation=cv2.INTER_AREA)
    return {
        "size": (image.shape[0], image.shape[1]),
        "pixel_hash": _hash(image),
        "dhash": difference_hash(grey),
        "grey": small.tobytes().hex(),
    }


def _hash(array: NDArray[np.integer]) -> str:
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _mismatch(image: UInt8Array, label: NDArray[np.integer]) -> str:
    turned = image.shape[:2] == label.shape[::-1]
    hint = "; the two are turned against each other" if turned and label.shape[0] != label.shape[1] else ""
    return f"is {_words(label)} (width x height) and its image {_words(image)}{hint}"


def _damage(error: DataError, place: str) -> tuple[str, str]:
    """Where and what: a shard's own error has both apart."""
    path, detail = getattr(error, "path", None), getattr(error, "detail", None)
    return (path.rpartition("/")[2], f"is damaged: {detail}") if path and detail else (place, str(error))


def _reason(error: Exception) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)


def _words(array: NDArray[np.integer]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
