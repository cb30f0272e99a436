"""What is said of one sample: each fault that a pair of files can have, provoked once."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data.doctor.findings import KINDS
from vitrail.data.doctor.inspection import IdRange, Record, difference_hash, inspect_pair, inspect_rows
from vitrail.data.layout import Pair
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder

IDS = IdRange(1, 3)
PAIR = Pair(id="a", image="a.png", label="a_mask.png", size_bytes=0, modified_ns=0)


def scene(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def mask(height: int = 40, width: int = 60) -> np.ndarray:
    ids = np.zeros((height, width), np.uint8)
    ids[:, 10:20], ids[:, 20:] = 1, 3
    return ids


def encoded(picture: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(sink, form, **options)
    return sink.getvalue()


def turned_by_exif() -> bytes:
    image = Image.fromarray(scene(60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


def palette_mask() -> Image.Image:
    image = Image.fromarray(mask(), "P")
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0, 0, 0, 250])
    return image


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[..., Record]:
    """Inspects a sound pair, but for the bytes that are given."""

    def run(image: bytes | None = None, label: bytes | None = None) -> Record:
        (tmp_path / "a.png").write_bytes(encoded(scene()) if image is None else image)
        (tmp_path / "a_mask.png").write_bytes(encoded(mask()) if label is None else label)
        return inspect_pair(Folder.at(tmp_path), "training", 4, PAIR, IDS)

    return run


def test_sound_sample_has_size_hashes_and_pixels_per_id(inspect: Callable[..., Record]) -> None:
    record = inspect()
    assert record.findings == ()
    assert record.size == (40, 60) and record.id_pixels == {0: 400, 1: 400, 3: 1600}
    assert (record.ref.split, record.ref.index, record.ref.path) == ("training", 4, "a.png")
    assert record.dhash is not None and len(record.pixel_hash) == len(record.label_hash) == 32
    again = inspect(image=encoded(scene(), compress_level=1))
    assert again == record, "other bytes with the same pixels"
    assert Record.model_validate_json(record.model_dump_json()) == record


WRONG = mask()
WRONG[7, 5], WRONG[9, 9] = 9, 200
HIGH = mask().astype(np.uint16)
HIGH[0, 0] = 40_000


@pytest.mark.parametrize(
    ("kind", "image", "label", "detail"),
    [
        ("unreadable_image", encoded(scene(), "JPEG")[:-200], None, "a.png cannot be read to its end"),
        ("unreadable_image", b"<html>", None, "a.png is not a JPEG or PNG file"),
        ("unreadable_image", b"", None, "a.png is not a JPEG or PNG file"),
        ("unreadable_mask", None, encoded(mask())[:-30], "a_mask.png cannot be read to its end"),
        ("unreadable_mask", None, encoded(np.zeros((40, 60, 3), np.uint8))[:-30], "a_mask.png cannot be read to its"),
        ("colour_mask", None, encoded(scene()), "a_mask.png is a colour image (mode RGB)"),
        ("size_mismatch", None, encoded(mask(20, 30)), "a_mask.png is 30x20 (width x height) and its image 60x40"),
        ("size_mismatch", None, encoded(mask(60, 40)), "the two are turned against each other"),
        ("id_out_of_range", None, encoded(WRONG), "has 2 pixels of 9, 200; the first 9 is at x=5, y=7"),
        ("id_out_of_range", None, encoded(HIGH), "has 1 pixels of 40000; the first 40000 is at x=0, y=0"),
        ("unlabelled_mask", None, encoded(np.zeros((40, 60), np.uint8)), "has no labelled pixel, only 0"),
        ("palette_mask", None, encoded(palette_mask()), "has a palette"),
        ("exif_rotation", turned_by_exif(), None, "has EXIF orientation 6; turned upright it is 60x40"),
        ("grey_image", encoded(scene()[..., 0]), None, "has one channel (mode L)"),
        ("cmyk_image", encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG"), None, "is in CMYK"),
        ("unusual_mode", encoded(Image.fromarray(scene()).convert("RGBA")), None, "has mode RGBA"),
        ("tiny_image", encoded(scene(20, 60)), encoded(mask(20, 60)), "is 60x20"),
    ],
)
def test_fault_is_found_and_nothing_else(
    inspect: Callable[..., Record], kind: str, image: bytes | None, label: bytes | None, detail: str
) -> None:
    record = inspect(image, label)
    assert [finding.kind for finding in record.findings] == [kind]
    assert detail in str(record.findings[0])
    assert record.findings[0].samples == (record.ref,)
    assert kind in KINDS


def test_missing_files_are_findings(tmp_path: Path) -> None:
    record = inspect_pair(Folder.at(tmp_path), "training", 0, PAIR, IDS)
    assert [finding.kind for finding in record.findings] == ["unreadable_image", "unreadable_mask"]


def test_damaged_exif_data_is_passed_over(inspect: Callable[..., Record]) -> None:
    jpeg, exif = encoded(scene(), "JPEG"), b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    assert inspect(jpeg[:2] + segment + jpeg[2:]).findings == ()


def test_difference_hash_is_that_of_its_definition_and_flat_images_have_none() -> None:
    grey = np.random.default_rng(1).integers(0, 256, (8, 9), np.uint8)
    bits = "".join(str(int(grey[y, x + 1] > grey[y, x])) for y in range(8) for x in range(8))
    assert difference_hash(grey) == int(bits, 2)
    assert difference_hash(np.full((50, 50), 90, np.uint8)) is None
    noise = np.random.default_rng(2).integers(88, 92, (480, 640), np.uint8)
    assert difference_hash(noise) is None


def test_damage_in_a_prepared_data_set_is_told_per_sample_or_per_shard(
    own_scenes: Path, tmp_path: Path, write_dataset: Callable[..., object]
) -> None:
    folder = tmp_path / "data"
    write_dataset(own_scenes, folder, shard_size_bytes=1 << 20)
    shard = folder / "training-00000.arrow"
    sound = shard.read_bytes()
    places = [sound.index(b"\xff\xd8\xff\xe0"), sound.rindex(b"\xff\xd8\xff\xe0")]  # first and last JPEG
    shard.write_bytes(bytes(b ^ 1 if n - 40 in places else b for n, b in enumerate(sound)))
    records = inspect_rows(ShardReader(folder, "training"), range(3))
    assert [[finding.kind for finding in record.findings] for record in records] == [
        ["damaged_shard"],
        [],
        ["damaged_shard"],
    ]
    assert "training-00000.arrow is damaged: sample 'scene_00000' fails its checksum" in str(records[0].findings[0])
    assert records[1].ref.path == "training/scene_00001"

    shard.write_bytes(sound[:-8])
    records = inspect_rows(ShardReader(folder, "training"), range(3))
    assert len(records) == 1 and "training-00000.arrow is damaged: it has" in str(records[0].findings[0])
