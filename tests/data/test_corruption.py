"""Ten thousand spoilt files, the same in every run: the right samples or an error of ours, never anything else.

A label is never silently wrong: masks are PNG, whose chunks have checksums, and shards and manifests have their own.
A JPEG has none. A bit that flips inside its coded data decodes to other pixels, and neither libjpeg's nor Pillow's
interface tells: Pillow discards libjpeg's warnings, OpenCV prints them. So for JPEG sources the claim is less: no
crash, and a sample of the right size with the right label, or a listed fault.
"""

import io
import random
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.codec import check_image, decode_raw_label
from vitrail.data.layout import read_layout
from vitrail.data.manifest import Manifest
from vitrail.data.shard_writer import ShardPlan, plan_shards, write_shard
from vitrail.data.shards import ShardReader
from vitrail.errors import DataError, UsageError

HEIGHT, WIDTH = 24, 40
IMAGES = ("photo.jpg", "progressive.jpg", "picture.png")
_CLASSES = 6


def corrupt(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one kind of damage."""
    spoilt = bytearray(data)
    start = rng.randrange(len(spoilt))
    size = min(rng.choice((1, 4, 16, 64, 256)), len(spoilt) - start)
    other = rng.randrange(len(spoilt) - size + 1)
    kind = rng.choice(("flip", "flip", "flips", "overwrite", "truncate", "zero", "duplicate", "swap", "insert", "cut"))
    if kind == "flip":
        spoilt[start] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(20):
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
        spoilt[start : start + size] = rng.randbytes(size)
    elif kind == "truncate":
        del spoilt[start:]
    elif kind == "zero":
        spoilt[start : start + size] = bytes(size)
    elif kind == "duplicate":
        spoilt[other:other] = spoilt[start : start + size]
    elif kind == "swap":
        spoilt[start : start + size], spoilt[other : other + size] = (
            spoilt[other : other + size],
            spoilt[start : start + size],
        )
    elif kind == "insert":
        spoilt[start:start] = rng.randbytes(size)
    else:
        del spoilt[start : start + size]
    return bytes(spoilt)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Three images, of which two JPEG, with palette, grey and 16-bit masks; no side is a turn of another."""
    folder, rng = tmp_path / "src", np.random.default_rng(0)
    for part in ("images", "annotations"):
        (folder / part / "training").mkdir(parents=True)
    options = ({"quality": 80}, {"progressive": True}, {})
    for name, option, dtype in zip(IMAGES, options, (np.uint8, np.uint8, np.uint16), strict=True):
        pixels = np.kron(rng.integers(0, 256, (6, 10, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
        Image.fromarray(pixels).save(folder / "images/training" / name, **option)
        ids = np.kron(rng.integers(0, _CLASSES + 1, (12, 20)), np.ones((2, 2))).astype(dtype)
        mask = Image.fromarray(ids)
        if name == "progressive.jpg":
            mask = Image.fromarray(ids, "P")
            mask.putpalette([10, 20, 30] * 256)
        mask.save((folder / "annotations/training" / name).with_suffix(".png"))
    rows = "".join(f"{n},class {n}\n" for n in range(1, _CLASSES + 1))
    (folder / "classes.csv").write_text("index,name\n" + rows)
    return folder


def _plan(src: Path) -> ShardPlan:
    return plan_shards(read_layout(src), shard_size_bytes=1 << 30)[0]


Samples = dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def _samples(folder: Path) -> Samples:
    reader = ShardReader(folder, "training")
    return {sample.id: (sample.image, sample.label) for sample in map(reader.__getitem__, range(len(reader)))}


def _spoil_source(
    src: Path, write_dataset: Callable[..., Manifest], file: str, rounds: int, *, pixels_are_checked: bool
) -> tuple[int, int]:
    """How many corruptions were listed as faults, and how many left other pixels; all else is asserted."""
    write_dataset(src, src.parent / "sound")
    want, path = _samples(src.parent / "sound"), src / file
    data, name, rng = path.read_bytes(), path.stem, random.Random(file)
    listed = changed = 0
    plan, out = _plan(src), src.parent / "spoilt"
    out.mkdir()
    pair = next(pair for pair in plan.pairs if pair.id == name)
    plan = plan.model_copy(update={"pairs": (pair,)})
    for _ in range(rounds):
        path.write_bytes(corrupt(data, rng))
        (out / "training-00000.json").unlink(missing_ok=True)
        report = write_shard(plan, source=src, folder=out)
        if report.faults:
            assert (
                report.shard is None and len(report.faults) == 1 and report.faults[0].path in (pair.image, pair.label)
            )
            listed += 1
            continue
        assert report.shard is not None
        manifest = Manifest.load(src.parent / "sound")
        split = manifest.splits["training"].model_copy(update={"shards": (report.shard,)})
        manifest.model_copy(update={"splits": {"training": split}}).sealed().save(out)
        image, label = _samples(out)[name]
        np.testing.assert_array_equal(label, want[name][1])
        assert image.shape == want[name][0].shape
        changed += not np.array_equal(image, want[name][0])
    assert changed == 0 or not pixels_are_checked
    return listed, changed


@pytest.mark.parametrize("file", ["photo.jpg", "progressive.jpg"])
def test_spoilt_jpeg_is_listed_or_keeps_its_size_and_label(
    src: Path, write_dataset: Callable[..., Manifest], file: str
) -> None:
    listed, _ = _spoil_source(src, write_dataset, f"images/training/{file}", 1000, pixels_are_checked=False)
    assert listed > 200


def test_spoilt_png_image_is_listed(src: Path, write_dataset: Callable[..., Manifest]) -> None:
    listed, _ = _spoil_source(src, write_dataset, "images/training/picture.png", 1000, pixels_are_checked=True)
    assert listed > 900


@pytest.mark.parametrize("name", ["photo", "progressive", "picture"])
def test_spoilt_mask_is_listed_or_right(src: Path, write_dataset: Callable[..., Manifest], name: str) -> None:
    file = f"annotations/training/{name}.png"
    listed, _ = _spoil_source(src, write_dataset, file, 1000, pixels_are_checked=True)
    assert listed > 900


@pytest.mark.parametrize(("file", "rounds"), [("training-00000.arrow", 2500), ("manifest.json", 1500)])
def test_spoilt_data_set_is_refused_or_right(
    src: Path, tmp_path: Path, write_dataset: Callable[..., Manifest], file: str, rounds: int
) -> None:
    folder = tmp_path / "data"
    manifest = write_dataset(src, folder)
    want, data, rng = _samples(folder), (folder / file).read_bytes(), random.Random(file)
    refused = 0
    for _ in range(rounds):
        # A new file each time: one that is mapped must not be truncated under its reader.
        (folder / file).unlink()
        (folder / file).write_bytes(corrupt(data, rng))
        try:
            reader = ShardReader(folder, "training")
        except (DataError, UsageError):
            refused += 1
            continue
        sealed = reader.manifest.model_copy(update={"source_signature": manifest.source_signature})
        assert sealed == manifest
        for index, (name, (image, label)) in enumerate(want.items()):
            try:
                sample = reader[index]
            except (DataError, UsageError):
                refused += 1
                continue
            assert sample.id == name
            np.testing.assert_array_equal(sample.image, image)
            np.testing.assert_array_equal(sample.label, label)
    assert refused > rounds * 0.9


@pytest.mark.parametrize("width", [20_000, 2**16 - 1, 2**31 - 1, 2**32 - 1, 0])
def test_gigantic_png_header_is_refused_at_once(width: int) -> None:
    """Also where the checksum was made to fit."""
    data = bytearray(_png(np.ones((8, 8), np.uint8)))
    struct.pack_into(">II", data, 16, width, width)
    for _ in range(2):
        _refused_cheaply(decode_raw_label, bytes(data))
        _refused_cheaply(check_image, bytes(data))
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))


@pytest.mark.parametrize("side", [10_000, 65_535, 0])
def test_gigantic_jpeg_header_becomes_a_fault(src: Path, tmp_path: Path, side: int) -> None:
    """libjpeg fills up 100 megapixels from the data of a thousand: the mask's size gives it away."""
    path = src / "images/training/photo.jpg"
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    path.write_bytes(data)

    def write(_: bytes) -> None:
        report = write_shard(_plan(src), source=src, folder=tmp_path)
        raise DataError(*[fault.reason for fault in report.faults])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        _refused_cheaply(write, b"")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def _refused_cheaply(decode: Callable[[bytes], object], data: bytes) -> None:
    begin, peak_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"."):
        decode(data)
    assert time.monotonic() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb < 1_000_000
