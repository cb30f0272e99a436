"""Reads a folder in ADEChallengeData2016's layout: which image goes with which mask, and what the classes are.

    SRC/images/{training,validation}/NAME.jpg (or .jpeg, .png)
    SRC/annotations/{training,validation}/NAME.png     raw ids; 0 is "unlabelled" unless classes.csv starts at 0
    SRC/classes.csv                                    optional: index,name[,red,green,blue]

Without `classes.csv` the classes are ADE20K's.
"""

import colorsys
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from vitrail.config import IGNORE_INDEX
from vitrail.data import ade20k
from vitrail.data.manifest import Fault
from vitrail.data.storage import Entry, Folder, Place
from vitrail.errors import DataError, UsageError
from vitrail.strict import Strict

SPLITS = ("training", "validation")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Colour = tuple[int, int, int]


class Pair(Strict):
    """An image and its mask, as paths relative to the source folder; size and time of the two files together."""

    id: str
    image: str
    label: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names and colours of the train ids 0..K-1; `raw_offset` is the raw id of train id 0."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    raw_offset: int = 1
    source: str
    """Where the names come from, in words for the user."""

    @property
    def reduce_zero_label(self) -> bool:
        """Whether raw id 0 means "unlabelled"."""
        return self.raw_offset == 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a source folder holds."""

    folder: Folder
    classes: Classes
    splits: dict[str, tuple[Pair, ...]]
    faults: tuple[Fault, ...] = field(default=())
    """Images without mask, masks without image, and names that occur twice."""


def read_layout(place: Place) -> Layout:
    """List the pairs of every split that exists, sorted by name.

    Raises:
        UsageError: the folder is missing or has not the layout.
        DataError: `classes.csv` cannot be understood.
    """
    folder = Folder.at(place)
    if not folder.is_folder():
        raise UsageError(f"{folder} is not a folder; give the one that holds images/ and annotations/")
    names = [name for name in SPLITS if folder.is_folder(f"images/{name}")]
    if not names:
        raise UsageError(
            f"{folder} has neither images/training nor images/validation; "
            "expected ADEChallengeData2016's layout: images/SPLIT/NAME.jpg with annotations/SPLIT/NAME.png"
        )
    splits, faults = {}, []
    for name in names:
        splits[name], split_faults = _read_split(folder, name)
        faults += split_faults
    if not any(splits.values()) and not faults:
        raise UsageError(f"{folder} has no images in {' or '.join(f'images/{name}' for name in names)}")
    return Layout(folder=folder, classes=read_classes(folder), splits=splits, faults=tuple(faults))


def read_classes(place: Place) -> Classes:
    """The classes of the folder's `classes.csv`, or ADE20K's where there is no such file."""
    folder = Folder.at(place)
    path = f"{folder}/classes.csv"
    if folder.size_bytes("classes.csv") is None:
        return Classes(
            names=ade20k.CLASSES, palette=ade20k.PALETTE, source="no classes.csv: ADE20K's 150 classes assumed"
        )
    try:
        reader = csv.DictReader(io.StringIO(folder.read("classes.csv").decode("utf-8-sig"), newline=""))
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 CSV file: {error}") from None
    return _parse_classes(path, columns, rows)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """`count` colours that differ in hue, walked by the golden ratio so that neighbours in the list differ most."""
    shades = ((0.65, 0.95), (0.9, 0.7), (0.45, 0.85))
    colours = []
    for index in range(count):
        saturation, value = shades[index % len(shades)]
        rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, saturation, value)
        colours.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return tuple(colours)


def _read_split(folder: Folder, split: str) -> tuple[tuple[Pair, ...], list[Fault]]:
    images = _files(folder, f"images/{split}", IMAGE_SUFFIXES)
    labels = dict(_files(folder, f"annotations/{split}", (".png",)))
    pairs: list[Pair] = []
    faults: list[Fault] = []
    used: set[str] = set()
    for stem, image in images:
        image_name, label_name = f"images/{split}/{image.name}", f"annotations/{split}/{stem}.png"
        if stem in used:
            faults.append(Fault(path=image_name, reason="another image has the same name but for its suffix"))
        elif stem not in labels:
            faults.append(Fault(path=image_name, reason=f"has no {label_name}"))
        else:
            pairs.append(_pair(stem, split, image, labels[stem]))
        used.add(stem)
    orphans = [labels[stem].name for stem in labels if stem not in used]
    faults += [Fault(path=f"annotations/{split}/{name}", reason=f"has no image in images/{split}") for name in orphans]
    return tuple(pairs), faults


def _pair(stem: str, split: str, image: Entry, label: Entry) -> Pair:
    return Pair(
        id=stem,
        image=f"images/{split}/{image.name}",
        label=f"annotations/{split}/{label.name}",
        size_bytes=image.size_bytes + label.size_bytes,
        modified_ns=max(image.modified_ns, label.modified_ns),
    )


def _files(folder: Folder, name: str, suffixes: Sequence[str]) -> list[tuple[str, Entry]]:
    """(stem, file) of the visible files with one of the suffixes, in any case, sorted by name."""
    paths = [(PurePosixPath(entry.name), entry) for entry in folder.files(name)]
    kept = [(p.stem, entry) for p, entry in paths if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return sorted(kept, key=lambda item: (item[0], item[1].name))


def _parse_classes(path: str, columns: list[str], rows: list[dict[str, str]]) -> Classes:
    known = {"index", "name", "red", "green", "blue"}
    unknown, missing = [c for c in columns if c not in known], [c for c in ("index", "name") if c not in columns]
    if unknown or missing:
        raise DataError(
            f"{path} has the columns {', '.join(map(repr, columns)) or 'of an empty file'}; "
            "expected index,name and, if colours are given, red,green,blue"
        )
    colours = [c for c in ("red", "green", "blue") if c in columns]
    if colours and len(colours) < 3:
        raise DataError(f"{path} has the colour columns {', '.join(colours)} only; give red, green and blue, or none")
    indices = [_number(path, row, "index", 0, IGNORE_INDEX - 1) for row in rows]
    first = min(indices, default=1)
    if first > 1 or sorted(indices) != list(range(first, first + len(indices))) or not indices:
        raise DataError(
            f"{path} must number its classes 1, 2, 3, ... (0 is then unlabelled) or 0, 1, 2, ..., each once; "
            f"got {indices[:12]}"
        )
    ordered = [row for _, row in sorted(zip(indices, rows, strict=True), key=lambda item: item[0])]
    names = tuple((row["name"] or "").strip() for row in ordered)
    if not all(names):
        raise DataError(f"{path} has no name for class {first + names.index('')}")
    palette = tuple(_colour(path, row) for row in ordered) if colours else distinct_colours(len(names))
    return Classes(names=names, palette=palette, raw_offset=first, source="classes.csv")


def _colour(path: str, row: dict[str, str]) -> Colour:
    return _number(path, row, "red", 0, 255), _number(path, row, "green", 0, 255), _number(path, row, "blue", 0, 255)


def _number(path: str, row: dict[str, str], column: str, low: int, high: int) -> int:
    text = row[column]
    try:
        value = int(text)
    except (TypeError, ValueError):
        raise DataError(f"{path}: {column} {text!r} of class {row['name']!r} is not a whole number") from None
    if not low <= value <= high:
        raise DataError(f"{path}: {column} {value} of class {row['name']!r} is not between {low} and {high}")
    return value
