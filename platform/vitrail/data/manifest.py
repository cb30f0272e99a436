"""The manifest of a prepared data set: what its shards hold, written last. A folder without one is not a data set.

manifest = Manifest.load("data/ade20k")
manifest.num_classes, manifest.splits["validation"].num_samples
"""

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, ValidationError, model_validator

from vitrail.data.storage import Folder, Place, StorageError
from vitrail.errors import DataError, UsageError
from vitrail.strict import Strict

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Channel = Annotated[int, Field(ge=0, le=255)]


class Fault(Strict):
    """A file of the source folder, named relative to it, that was kept out, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class Shard(Strict):
    """One Arrow file. `blobs` are the byte ranges of images and masks; `frame_crc32` covers all other bytes."""

    path: str
    rows: PositiveInt
    size_bytes: PositiveInt
    sha256: Hash
    frame_crc32: NonNegativeInt
    blobs: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or "\\" in self.path or ":" in self.path:
            raise ValueError(f"shard path {self.path!r} leaves the data set's folder")
        return self


class Split(Strict):
    """The shards of one split, in order, and how many pixels each class has in them."""

    shards: tuple[Shard, ...]
    class_pixels: tuple[NonNegativeInt, ...]
    ignored_pixels: NonNegativeInt

    @property
    def num_samples(self) -> int:
        """Images with their masks."""
        return sum(shard.rows for shard in self.shards)


class Manifest(Strict):
    """What a data set is. Train id i is raw id i + 1 when `reduce_zero_label`, else i; 255 is ignored."""

    format_version: int = FORMAT_VERSION
    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[Channel, Channel, Channel], ...]
    reduce_zero_label: bool
    splits: dict[str, Split]
    faults: tuple[Fault, ...] = ()
    source_signature: str
    """Changes when a source file's name, size or time does; says whether a rerun continues this data set."""
    fingerprint: str = ""
    """Changes with anything above but `source_signature`; equal fingerprints mean equal pixels."""

    @property
    def num_classes(self) -> int:
        """Classes that a model for this data set tells apart."""
        return len(self.classes)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= len(self.classes) == len(self.palette) <= 255:
            raise ValueError(f"{len(self.classes)} classes with {len(self.palette)} colours")
        for name, split in self.splits.items():
            if len(split.class_pixels) != len(self.classes):
                raise ValueError(f"split {name!r} counts {len(split.class_pixels)} of {len(self.classes)} classes")
        return self

    @classmethod
    def load(cls, folder: Place) -> Self:
        """The manifest in `folder`.

        Raises:
            UsageError: the folder is missing, or is not a data set.
            DataError: written by a newer version, damaged, or naming files outside the folder.
        """
        place = Folder.at(folder)
        if place.size_bytes(MANIFEST_NAME) is None:
            state = "has no manifest.json, so it is not a data set" if place.is_folder() else "does not exist"
            raise UsageError(f"{folder} {state}; make one with: pipelines/prepare.py SRC {folder}")
        return cls._validated(f"{place}/{MANIFEST_NAME}", _read_json(place))

    @classmethod
    def _validated(cls, path: str, content: dict[str, Any]) -> Self:
        version = content.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, and this vitrail reads up to {FORMAT_VERSION}; "
                "install a newer vitrail, or prepare the data set again with --overwrite"
            )
        if isinstance(version, int) and version < FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, which this vitrail no longer reads; "
                "prepare the data set again with --overwrite"
            )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "manifest"
            raise DataError(f"{path} is not valid: {where}: {first['msg']}") from None
        if manifest.fingerprint != manifest._fingerprint():
            raise DataError(f"{path} was changed after it was written; prepare the data set again, with --overwrite")
        return manifest

    def sealed(self) -> Self:
        """The same manifest with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": self._fingerprint()})

    def save(self, folder: Place) -> None:
        """Write `folder/manifest.json`, aside and then renamed."""
        Folder.at(folder).write(MANIFEST_NAME, (self.model_dump_json(indent=1) + "\n").encode())

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            UsageError: there is none; the message names those that there are.
        """
        if name not in self.splits:
            raise UsageError(f"data set {self.name!r} has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        return self.splits[name]

    def _fingerprint(self) -> str:
        values = self.model_dump(mode="json", exclude={"fingerprint", "source_signature"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _read_json(folder: Folder) -> dict[str, Any]:
    path = f"{folder}/{MANIFEST_NAME}"
    try:
        content = json.loads(folder.read(MANIFEST_NAME))
    except OSError as error:
        raise StorageError(path, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable JSON ({error}); prepare the data set again, with --overwrite"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a manifest; prepare the data set again, with --overwrite")
    return content
