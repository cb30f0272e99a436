"""Reads prepared samples in any order: each shard is an Arrow file, mapped into memory and checked as it is read.

    reader = ShardReader("data/ade20k", "training")
    sample = reader[123]        # sample.image (H, W, 3) RGB, sample.label (H, W) train ids

A row costs its own pages only. Shards of an object store are fetched whole when first touched, into the folder that
`VITRAIL_CACHE` names (`~/.cache/vitrail`).

The bytes that hold a shard together are checked when it is opened, each sample's own bytes when it is read: damage is
an error, never another picture.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vitrail.data.codec import UInt8Array, decode_image
from vitrail.data.label_codec import decode_label
from vitrail.data.manifest import Manifest, Shard
from vitrail.data.shard_cache import cache_folder, fetch_shard
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),  # the source file's own bytes
        pa.field("label", pa.large_binary(), nullable=False),  # train ids, row by row, compressed with Zstandard
        pa.field("height", pa.int32(), nullable=False),  # of the decoded image, EXIF orientation applied
        pa.field("width", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),  # of image, then label
    ]
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image (H, W, 3) in RGB and its train ids (H, W), 255 where ignored."""

    id: str
    image: UInt8Array
    label: UInt8Array


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample as its shard holds it: buffers in the mapped file, whose checksum is right."""

    id: str
    image: Any
    label: Any
    size: tuple[int, int]

    def decode(self) -> Sample:
        """The pixels and train ids."""
        return Sample(id=self.id, image=decode_image(memoryview(self.image)), label=decode_label(self.label, self.size))


class DamagedShardError(DataError):
    """A shard's bytes are not those that were written."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path, self.detail = path, detail

    def __str__(self) -> str:
        kept = Path(self.path).is_relative_to(cache_folder())
        way_out = "delete it, and it is fetched again" if kept else "run pipelines/prepare.py again"
        return f"{self.path} is damaged: {self.detail}; {way_out}"


class ShardReader:
    """Random access to the samples of one split. Safe to share between threads; pickles as its folder and split."""

    def __init__(self, folder: Place, split: str) -> None:
        self.folder, self.split = Folder.at(folder), split
        self.manifest = Manifest.load(self.folder)
        self._shards = self.manifest.split(split).shards
        self._ends = np.cumsum([shard.rows for shard in self._shards], dtype=np.int64)
        self._batches: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, decoded.

        Raises:
            DamagedShardError: its bytes, or the shard's, are not those that were written.
        """
        return self.encoded(index).decode()

    def encoded(self, index: int) -> EncodedSample:
        """Sample `index` as its shard holds it; raises what `[index]` raises."""
        batch, row, shard = self._locate(index)
        name = batch.column("id")[row].as_py()
        image, label = (batch.column(column)[row].as_buffer() for column in ("image", "label"))
        if sample_crc32(image, label) != batch.column("crc32")[row].as_py():
            raise DamagedShardError(str(self._on_disk(shard)), f"sample {name!r} fails its checksum")
        size = batch.column("height")[row].as_py(), batch.column("width")[row].as_py()
        return EncodedSample(id=name, image=image, label=label, size=size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.split)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Names of all samples, in order."""
        return tuple(name for n in range(len(self._shards)) for name in self._batch(n).column("id").to_pylist())

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of all images, in order, without decoding them."""
        batches = [self._batch(n) for n in range(len(self._shards))]
        columns = [(b.column("height").to_pylist(), b.column("width").to_pylist()) for b in batches]
        return tuple(size for heights, widths in columns for size in zip(heights, widths, strict=True))

    def _locate(self, index: int) -> tuple[Any, int, Shard]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in split {self.split!r}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        return self._batch(number), index - int(self._ends[number]) + shard.rows, shard

    def _on_disk(self, shard: Shard) -> Path:
        local = self.folder.local
        return local / shard.path if local else fetch_shard(self.folder, shard, self.manifest.fingerprint)

    def _batch(self, number: int) -> Any:
        # Two threads may both open a shard; either mapping will do.
        if number not in self._batches:
            shard = self._shards[number]
            self._batches[number] = _open_shard(self._on_disk(shard), shard)
        return self._batches[number]


def sample_crc32(image: Any, label: Any) -> int:
    """Checksum of a sample's two blobs, given as buffers."""
    return zlib.crc32(label, zlib.crc32(image))


def frame_crc32(data: memoryview, blobs: tuple[tuple[int, int], ...]) -> int:
    """Checksum of all bytes of a shard outside the ranges `blobs`: schema, ids, offsets and footer."""
    checksum, position = 0, 0
    for start, end in sorted(blobs):
        checksum = zlib.crc32(data[position:start], checksum)
        position = end
    return zlib.crc32(data[position:], checksum)


def _open_shard(path: Path, shard: Shard) -> Any:
    """The one record batch of a shard, its buffers lying in the mapped file."""
    if not path.is_file():
        raise DamagedShardError(str(path), "it is listed in the manifest but does not exist")
    size_bytes = path.stat().st_size
    if size_bytes != shard.size_bytes:
        raise DamagedShardError(str(path), f"it has {size_bytes:,} bytes in place of {shard.size_bytes:,}")
    buffer = pa.memory_map(str(path)).read_buffer()
    if frame_crc32(memoryview(buffer), shard.blobs) != shard.frame_crc32:
        raise DamagedShardError(str(path), "its index fails its checksum")
    # Arrow trusts offsets, so nothing of the file is given to it before the check above.
    return pa.ipc.open_file(buffer).get_batch(0)
