"""Decides which samples go into which shard, and writes one shard: the work of one task of `pipelines/prepare.py`.

The plan depends on the sorted list of files and their sizes alone, so the same input gives the same bytes however many
workers write them. Beside each finished shard lies a small JSON report; a rerun keeps what is reported and unchanged.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from vitrail.config import IGNORE_INDEX
from vitrail.data.codec import UInt8Array, check_image, decode_image, decode_raw_label
from vitrail.data.label_codec import encode_label
from vitrail.data.layout import Layout, Pair
from vitrail.data.manifest import FORMAT_VERSION, Fault, Manifest, Shard, Split
from vitrail.data.shards import SCHEMA, frame_crc32, sample_crc32
from vitrail.data.storage import Folder, Place
from vitrail.errors import DataError
from vitrail.strict import Strict


class ShardPlan(Strict):
    """What one shard is made from. Its digest is the shard's source signature."""

    name: str
    split: str
    pairs: tuple[Pair, ...]
    num_classes: int
    raw_offset: int
    format_version: int = FORMAT_VERSION


class ShardReport(Strict):
    """What came of a plan; the sidecar of a shard. `shard` is None when every sample was at fault."""

    signature: str
    shard: Shard | None
    class_pixels: tuple[int, ...]
    ignored_pixels: int
    faults: tuple[Fault, ...]


def plan_shards(layout: Layout, *, shard_size_bytes: int) -> list[ShardPlan]:
    """Consecutive pairs of each split, cut where a shard would outgrow `shard_size_bytes` of source files."""
    plans = []
    for split, pairs in layout.splits.items():
        for number, group in enumerate(_cut(pairs, shard_size_bytes)):
            plan = ShardPlan(
                name=f"{split}-{number:05d}",
                split=split,
                pairs=tuple(group),
                num_classes=len(layout.classes.names),
                raw_offset=layout.classes.raw_offset,
            )
            plans.append(plan)
    return plans


def write_shard(plan: ShardPlan, *, source: Place, folder: Place) -> ShardReport:
    """Write the shard and, after it, its report; faulty samples are left out and reported with their reasons.

    A shard whose report is there, with the plan's signature and the bytes it speaks of, is left as it is.
    """
    source, folder, sidecar = Folder.at(source), Folder.at(folder), f"{plan.name}.json"
    finished = _finished(sidecar, plan, folder)
    if finished is not None:
        return finished
    rows = _Rows(num_classes=plan.num_classes)
    for pair in plan.pairs:
        _add_pair(rows, pair, plan, source)
    shard = None
    if rows.ids:
        data, shard = _serialise(rows, f"{plan.name}.arrow")
        folder.write(shard.path, data)
    report = ShardReport(
        signature=plan.digest(),
        shard=shard,
        class_pixels=tuple(rows.pixels[: plan.num_classes].tolist()),
        ignored_pixels=int(rows.pixels[IGNORE_INDEX]),
        faults=tuple(rows.faults),
    )
    folder.write(sidecar, report.model_dump_json().encode())
    return report


def assemble_manifest(layout: Layout, plans: Sequence[ShardPlan], reports: Sequence[ShardReport]) -> Manifest:
    """The manifest of what `plans` became; splits without a usable sample are left out."""
    splits = {}
    for name in layout.splits:
        mine = [report for plan, report in zip(plans, reports, strict=True) if plan.split == name and report.shard]
        if mine:
            splits[name] = Split(
                shards=tuple(report.shard for report in mine if report.shard),
                class_pixels=tuple(map(sum, zip(*(report.class_pixels for report in mine), strict=True))),
                ignored_pixels=sum(report.ignored_pixels for report in mine),
            )
    return Manifest(
        name=layout.folder.name,
        classes=layout.classes.names,
        palette=layout.classes.palette,
        reduce_zero_label=layout.classes.reduce_zero_label,
        splits=splits,
        faults=(*layout.faults, *(fault for report in reports for fault in report.faults)),
        source_signature=source_signature(plans),
    ).sealed()


def source_signature(plans: Sequence[ShardPlan]) -> str:
    """Changes when a source file's name, size or time does, or the size of shards."""
    return hashlib.sha256("".join(plan.digest() for plan in plans).encode()).hexdigest()[:16]


@dataclass
class _Rows:
    """Columns of a shard while they grow."""

    num_classes: int
    ids: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    labels: list[bytes] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))


def _cut(pairs: Iterable[Pair], shard_size_bytes: int) -> list[list[Pair]]:
    groups: list[list[Pair]] = []
    filled = shard_size_bytes
    for pair in pairs:
        if not groups or filled + pair.size_bytes > shard_size_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(pair)
        filled += pair.size_bytes
    return groups


def _finished(sidecar: str, plan: ShardPlan, folder: Folder) -> ShardReport | None:
    """The report of an earlier run, if the shard need not be written again."""
    try:
        report = ShardReport.model_validate_json(folder.read(sidecar))
    except (OSError, ValidationError):
        return None
    if report.signature != plan.digest():
        return None
    shard = report.shard
    if shard is None:
        return report
    if folder.size_bytes(shard.path) != shard.size_bytes or folder.sha256(shard.path) != shard.sha256:
        return None
    return report


def _add_pair(rows: _Rows, pair: Pair, plan: ShardPlan, source: Folder) -> None:
    """Add a sample to the rows, or the reason why not to the faults."""
    at_fault = pair.image
    try:
        image = source.read(pair.image)
        check_image(image)
        size = decode_image(image).shape[:2]
        at_fault = pair.label
        label = _train_ids(decode_raw_label(source.read(pair.label)), plan)
        if label.shape != size:
            raise DataError(f"is {_words(label.shape)} (width x height) and its image {_words(size)}")
    except DataError as error:
        rows.faults.append(Fault(path=at_fault, reason=str(error)))
        return
    except OSError as error:
        rows.faults.append(Fault(path=at_fault, reason=f"cannot be read ({error.strerror or error})"))
        return
    rows.ids.append(pair.id)
    rows.images.append(image)
    rows.labels.append(encode_label(label))
    rows.sizes.append((size[0], size[1]))
    rows.pixels += np.bincount(label.reshape(-1), minlength=256)


def _train_ids(raw: NDArray[np.int64], plan: ShardPlan) -> UInt8Array:
    """Train ids of raw ids; the raw id below the first class, and 255, are ignored."""
    ids = raw - plan.raw_offset
    ignored = (ids < 0) | (raw == IGNORE_INDEX)
    wrong = (ids >= plan.num_classes) & ~ignored
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        last = plan.num_classes - 1 + plan.raw_offset
        raise DataError(f"has label {raw[y, x]} at x={x}, y={y}, above the last of {plan.num_classes} classes, {last}")
    ids[ignored] = IGNORE_INDEX
    return ids.astype(np.uint8)


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _serialise(rows: _Rows, name: str) -> tuple[memoryview, Shard]:
    """The bytes of an Arrow file with one record batch, and its entry in the manifest."""
    crc32 = [sample_crc32(image, label) for image, label in zip(rows.images, rows.labels, strict=True)]
    heights, widths = zip(*rows.sizes, strict=True)
    columns = [rows.ids, rows.images, rows.labels, heights, widths, crc32]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
    buffer = sink.getvalue()
    data, blobs = memoryview(buffer), _blobs(buffer)
    shard = Shard(
        path=name,
        rows=len(rows.ids),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        frame_crc32=frame_crc32(data, blobs),
        blobs=blobs,
    )
    return data, shard


def _blobs(buffer: pa.Buffer) -> tuple[tuple[int, int], ...]:
    """Where in a serialised shard the bytes of images and of labels lie."""
    batch = pa.ipc.open_file(buffer).get_batch(0)
    values = [batch.column(name).buffers()[2] for name in ("image", "label")]
    starts = [part.address - buffer.address for part in values]
    return tuple((start, start + part.size) for start, part in zip(starts, values, strict=True))
