"""Findings that need the whole data set: duplicates, classes, the meaning of raw 0, what a manifest says; the page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrail.config import TransformConfig
from vitrail.data.doctor.diagnosis import Diagnosis, Subject, diagnose
from vitrail.data.doctor.drawing import draw_overlay
from vitrail.data.doctor.duplicates import near_pairs
from vitrail.data.doctor.examples import open_illustrator
from vitrail.data.doctor.findings import KINDS, Finding, SampleRef
from vitrail.data.doctor.inspection import IdRange, Record, inspect_pair, inspect_rows
from vitrail.data.doctor.page import render_page, write_report
from vitrail.data.doctor.preview import draw_first_crops
from vitrail.data.layout import distinct_colours, read_layout
from vitrail.data.manifest import Fault, Manifest
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder

BOTH = ("training", "validation")


def record(split: str, index: int, **fields: Any) -> Record:
    """A sound record whose image is like no other's."""
    rng = np.random.default_rng([index, split == "training"])
    defaults = {
        "size": (40, 60),
        "pixel_hash": f"{split}{index}",
        "label_hash": f"{split}{index}",
        "dhash": int(rng.integers(1 << 63)),
        "grey": rng.integers(0, 256, 256, np.uint8).tobytes().hex(),
        "id_pixels": {0: 100, 1: 1000, 2: 800, 3: 500},
    }
    ref = SampleRef(split=split, index=index, path=f"images/{split}/{index}.jpg")
    return Record(ref=ref, **defaults | fields)


def diagnosed(records: Sequence[Record], *, raw_offset: int = 1, **arguments: Any) -> Diagnosis:
    names = arguments.pop("names", ("sky", "road", "tree"))
    subject = Subject(
        place="/data/streets",
        name="streets",
        is_prepared=False,
        classes=names,
        palette=distinct_colours(len(names)),
        class_source=arguments.pop("class_source", f"classes.csv starts at {raw_offset}"),
        raw_offset=raw_offset,
        splits={split: sum(r.ref.split == split for r in records) for split in BOTH},
    )
    return diagnose(subject, records, **arguments)


def sound() -> list[Record]:
    return [record("training", index) for index in range(3)] + [record("validation", index) for index in range(2)]


def kinds(diagnosis: Diagnosis) -> list[str]:
    return [group.kind.name for group in diagnosis.groups]


def example(diagnosis: Diagnosis, kind: str) -> str:
    group = diagnosis.group(kind)
    assert group is not None and group.count == len(group.listed) == 1
    return str(group.listed[0])


def test_sound_data_set_has_no_findings_and_a_summary() -> None:
    diagnosis = diagnosed(sound())
    assert diagnosis.groups == ()
    assert diagnosis.splits["training"].class_pixels == (3000, 2400, 1500)
    assert diagnosis.splits["training"].ignored_pixels == 300
    assert diagnosis.splits["validation"].class_images == (2, 2, 2)
    assert diagnosis.all_sizes == ((60, 40, 5),)
    assert Diagnosis.model_validate_json(diagnosis.model_dump_json()) == diagnosis


def test_drawn_scenes_have_no_errors(scenes: Path, dataset: Path) -> None:
    layout, manifest = read_layout(scenes), Manifest.load(dataset)
    pairs = [(split, index, pair) for split in layout.splits for index, pair in enumerate(layout.splits[split])]
    source = [inspect_pair(layout.folder, split, index, pair, IdRange(1, 8)) for split, index, pair in pairs]
    readers = [ShardReader(dataset, split) for split in manifest.splits]
    prepared = [r for reader in readers for r in inspect_rows(reader, range(len(reader)))]
    first = diagnose(Subject.of_layout(layout), source)
    second = diagnose(Subject.of_manifest(Folder.at(dataset), manifest), prepared, manifest=manifest)
    assert kinds(first) == kinds(second) == ["class_not_validated"], "three scenes do not hold every class"
    assert [s.class_pixels for s in first.splits.values()] == [s.class_pixels for s in manifest.splits.values()]
    assert first.splits == second.splits


def test_exact_duplicates_between_and_within_splits() -> None:
    leak = diagnosed([*sound(), record("training", 3, pixel_hash="validation1", label_hash="validation1")])
    assert kinds(leak) == ["leak"]
    assert example(leak, "leak") == "images/training/3.jpg is also images/validation/1.jpg"
    twice = diagnosed([*sound(), record("training", 3, pixel_hash="training1", label_hash="training1")])
    assert kinds(twice) == ["duplicate"]
    assert example(twice, "duplicate") == "images/training/1.jpg is also images/training/3.jpg"
    other_mask = diagnosed([*sound(), record("training", 3, pixel_hash="training1")])
    assert kinds(other_mask) == ["contradiction", "duplicate"]


def test_near_duplicates_within_and_between_splits() -> None:
    first = sound()[0]
    assert first.dhash is not None
    frame = {"dhash": first.dhash ^ 0b111, "grey": first.grey}
    assert kinds(diagnosed([*sound(), record("training", 3, **frame)])) == ["near_duplicate"]
    diagnosis = diagnosed([*sound(), record("validation", 2, **frame)])
    assert example(diagnosis, "near_leak") == (
        "images/validation/2.jpg differs by 3 of 64 bits from images/training/0.jpg"
    )
    far = {"dhash": first.dhash ^ 0b11111, "grey": first.grey}
    assert diagnosed([*sound(), record("training", 3, **far)]).groups == ()
    unlike = {"dhash": first.dhash}
    assert diagnosed([*sound(), record("training", 3, **unlike)]).groups == (), "the hash alone is not enough"


def test_look_alikes_are_grouped_through_others() -> None:
    """Frames 0, 4, 5, ..., each three bits from the next and too far from all others."""
    first = sound()[0]
    assert first.dhash is not None
    frames = [first.dhash ^ sum(0b111 << 3 * step for step in range(n)) for n in range(1, 9)]
    records = [record("training", 3 + n, dhash=dhash, grey=first.grey) for n, dhash in enumerate(frames)]
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    shuffled = [records[n].model_copy(update={"ref": records[place].ref}) for place, n in enumerate(order)]
    group = diagnosed([*sound(), *shuffled]).group("near_duplicate")
    assert group is not None and group.count == 1
    assert [ref.index for ref in group.listed[0].samples] == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_flat_images_are_not_all_duplicates() -> None:
    grey = bytes([90] * 256).hex()
    assert diagnosed([record("training", n, dhash=None, grey=grey) for n in range(9)] + sound()[3:]).groups == ()


@pytest.mark.parametrize("count", [1, 700])
def test_near_pairs_match_brute_force(count: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, count, np.uint64)
    for index in range(1, count, 3):  # up to six bits from another
        for bit in rng.integers(0, 64, rng.integers(0, 7)):
            hashes[index] = hashes[index - 1] ^ np.uint64(1 << int(bit)) if bit % 2 else hashes[index - 1]
    numbers = [int(value) for value in hashes]
    expected = {
        (i, j, (numbers[i] ^ numbers[j]).bit_count())
        for i in range(count)
        for j in range(i + 1, count)
        if (numbers[i] ^ numbers[j]).bit_count() <= 4
    }
    found = [tuple(row) for block in near_pairs(hashes) for row in block.tolist()]
    assert len(found) == len(set(found)) and set(found) == expected
    assert bool(expected) == (count > 1)


def test_classes_missing_everywhere_or_on_one_side() -> None:
    training = [record("training", n, id_pixels={1: 10, 2: 10, 4: 1}) for n in range(2)]
    validation = [record("validation", n, id_pixels={2: 10, 3: 10, 4: 1}) for n in range(2)]
    diagnosis = diagnosed([*training, *validation], names=("sky", "road", "tree", "car", "unicorn"))
    assert kinds(diagnosis) == ["class_never_seen", "class_not_trained", "class_not_validated"]
    assert example(diagnosis, "class_never_seen") == "class 5 'unicorn' has no pixel"
    assert example(diagnosis, "class_not_trained") == "class 3 'tree' is in 2 validation masks and in none of training"
    assert example(diagnosis, "class_not_validated").startswith("class 1 'sky' is in 2 training masks")


def test_missing_split_and_assumed_classes_are_told() -> None:
    diagnosis = diagnosed(sound()[:3], class_source="no classes.csv: ADE20K's 150 classes assumed")
    assert kinds(diagnosis) == ["missing_split", "classes_assumed"]


def test_faults_of_the_layout_become_findings() -> None:
    faults = [
        Fault(path="images/training/x.jpg", reason="has no annotations/training/x.png"),
        Fault(path="annotations/training/y.png", reason="has no image in images/training"),
        Fault(path="images/training/z.png", reason="another image has the same name but for its suffix"),
    ]
    assert kinds(diagnosed(sound(), faults=faults)) == ["no_mask", "same_name", "mask_without_image"]


@pytest.mark.parametrize(
    ("raw_offset", "id_pixels", "names", "looks_like"),
    [
        (1, {0: 100, 1: 900, 3: 500}, ("sky", "road", "tree"), "unlabelled"),
        (1, {0: 900, 1: 900, 2: 500}, ("sky", "road", "tree"), "class"),
        (1, {0: 5, 1: 900, 2: 500}, ("sky", "road", "tree"), "unclear"),
        (1, {0: 5000, 3: 500}, ("sky", "road", "tree"), "unclear"),
        (0, {0: 900, 1: 900, 2: 500}, ("sky", "road", "tree"), "class"),
        (0, {0: 900, 1: 900, 3: 500}, ("sky", "road", "tree"), "unlabelled"),
        (0, {0: 900, 1: 900, 2: 500}, ("Void", "road", "tree"), "unlabelled"),
        (0, {0: 900, 1: 900}, ("sky", "road", "tree"), "unclear"),
    ],
)
def test_raw_zero_is_judged_with_evidence(
    raw_offset: int, id_pixels: dict[int, int], names: tuple[str, ...], looks_like: str
) -> None:
    records = [record(split, n, id_pixels=id_pixels) for split in BOTH for n in range(2)]
    diagnosis = diagnosed(records, raw_offset=raw_offset, names=names)
    zero = diagnosis.zero_label
    assert zero is not None and zero.looks_like == looks_like
    assert f"raw 0 fills {id_pixels[0] / sum(id_pixels.values()):.1%} of all pixels" in zero.evidence[1]
    expected = looks_like not in ("unclear", "unlabelled" if raw_offset else "class")
    assert ("zero_label" in kinds(diagnosis)) == expected == zero.is_doubtful


def test_other_counts_than_the_manifests_are_found(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    readers = [ShardReader(dataset, split) for split in manifest.splits]
    records = [r for reader in readers for r in inspect_rows(reader, range(len(reader)))]
    subject = Subject.of_manifest(Folder.at(dataset), manifest)
    diagnosis = diagnose(subject, records[1:], manifest=manifest)
    group = diagnosis.group("manifest_mismatch")
    assert group is not None and "has 12 samples that can be read, and manifest.json says 13" in str(group.listed[0])
    pixels = records[0].id_pixels
    low, high = sorted(value for value in pixels if value < 255)[:2]
    swapped = records[0].model_copy(update={"id_pixels": pixels | {low: pixels[high], high: pixels[low]}})
    moved = diagnose(subject, [swapped, *records[1:]], manifest=manifest)
    assert f"for 2 classes, the first {low}" in example(moved, "manifest_mismatch")


def test_files_left_out_of_a_prepared_data_set_are_a_note(dataset: Path) -> None:
    subject = Subject.of_manifest(Folder.at(dataset), Manifest.load(dataset))
    diagnosis = diagnose(subject, [], faults=[Fault(path="images/training/x.jpg", reason="is not a JPEG or PNG file")])
    assert "left_out" in kinds(diagnosis) and diagnosis.count("error") == 0


def test_listed_findings_are_bounded_and_counted_in_full() -> None:
    many = tuple(Finding(kind="grey_image", path=f"{n}.jpg", detail="is grey") for n in range(2_000))
    group = diagnosed([*sound()[1:], record("training", 0, findings=many)]).group("grey_image")
    assert group is not None and group.count == 2_000 and len(group.listed) == 500


def test_page_escapes_names_and_needs_no_network(tmp_path: Path) -> None:
    name = '<script>alert("x")</script>.jpg'
    finding = Finding(kind="grey_image", path=name, detail="<b>", samples=(sound()[0].ref,))
    spoilt = record("training", 0, findings=(finding,))
    diagnosis = diagnosed([spoilt, *sound()[1:]], names=("<i>sky</i>", "road", "tree"))
    page = render_page(diagnosis, picture=lambda ref: b"jpeg", preview=b"png")
    assert "<script" not in page and "<b>" not in page.replace("<b>Way out:</b>", "") and "<i>" not in page
    assert "http" not in page and 'src="data:image/jpeg;base64,anBlZw=="' in page
    write_report(diagnosis, tmp_path / "out", picture=lambda ref: None)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["groups"][0]["count"] == 1


def test_every_kind_says_what_it_means_and_the_way_out() -> None:
    order = [kind.severity for kind in KINDS.values()]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert all(kind.meaning.endswith(".") and kind.way_out.endswith(".") for kind in KINDS.values())


def test_overlay_hatches_what_is_ignored_and_marks_what_no_class_has() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    label = np.zeros((64, 64), np.uint8)
    label[:32], label[:, 40:] = 255, 7
    picture = draw_overlay(image, label, [(255, 0, 0)])
    assert (picture[40:, 45:] == (255, 0, 255)).all()
    assert np.unique(picture[32:, :40].reshape(-1, 3), axis=0).tolist() == [[204, 51, 51]]
    assert len(np.unique(picture[:32, :40].reshape(-1, 3), axis=0)) == 2


def test_first_crops_are_the_same_for_source_and_prepared_data_and_for_the_same_seed(
    scenes: Path, dataset: Path
) -> None:
    config = TransformConfig(scale=(288, 72), crop_size=64)
    draw: Callable[[Path, int], Any] = lambda place, seed: draw_first_crops(place, config, count=5, seed=seed)  # noqa: E731
    source, prepared, other = draw(scenes, 3), draw(dataset, 3), draw(dataset, 4)
    np.testing.assert_array_equal(source, prepared)
    assert source.shape != other.shape or (source != other).any()


def test_faulty_samples_are_pictured_as_far_as_they_go_and_passed_over_by_the_preview(own_scenes: Path) -> None:
    image = own_scenes / "images/training/scene_00000.jpg"
    image.write_bytes(image.read_bytes()[:900])
    (own_scenes / "annotations/training/scene_00001.png").write_bytes(b"")
    illustrator = open_illustrator(own_scenes)
    for index in range(3):
        assert illustrator.picture(SampleRef(split="training", index=index, path="")) is not None
    config = TransformConfig(scale=(192, 48), crop_size=32)
    assert draw_first_crops(own_scenes, config, count=2, seed=0) is not None
    (own_scenes / "annotations/training/scene_00002.png").write_bytes(b"")
    assert draw_first_crops(own_scenes, config, count=2, seed=0) is None
