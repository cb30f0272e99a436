"""Reading a source folder: pairs, classes, and what is said when they are not right."""

import os
from pathlib import Path

import pytest

from vitrail.data import ade20k
from vitrail.data.layout import read_classes, read_layout
from vitrail.data.scenes import CLASSES
from vitrail.errors import DataError, UsageError


def test_layout_lists_pairs_sorted_with_their_classes(scenes: Path) -> None:
    layout = read_layout(scenes)
    assert [len(layout.splits[name]) for name in ("training", "validation")] == [13, 3]
    first = layout.splits["training"][0]
    names = (first.id, first.image, first.label)
    assert names == ("scene_00000", "images/training/scene_00000.jpg", "annotations/training/scene_00000.png")
    assert first.size_bytes == sum((scenes / name).stat().st_size for name in names[1:])
    assert layout.classes.names == CLASSES
    assert layout.classes.reduce_zero_label
    assert layout.faults == ()


def test_ade20k_is_assumed_without_classes_file(ade20k_sample: Path) -> None:
    layout = read_layout(ade20k_sample)
    assert list(layout.splits) == ["validation"]
    assert layout.classes.names == ade20k.CLASSES
    assert "ADE20K" in layout.classes.source


def test_ade20k_table_is_the_benchmarks() -> None:
    assert len(ade20k.CLASSES) == len(set(ade20k.CLASSES)) == len(ade20k.PALETTE) == 150
    assert (ade20k.CLASSES[0], ade20k.PALETTE[0]) == ("wall", (120, 120, 120))
    assert (ade20k.CLASSES[44], ade20k.CLASSES[149], ade20k.PALETTE[149]) == ("chest of drawers", "flag", (92, 0, 255))


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        read_layout(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"neither images/training nor images/validation"):
        read_layout(tmp_path)


def test_unpaired_and_double_files_are_faults(own_scenes: Path) -> None:
    images, labels = own_scenes / "images" / "training", own_scenes / "annotations" / "training"
    (labels / "scene_00001.png").unlink()
    (images / "scene_00002.jpg").unlink()
    (images / "scene_00000.PNG").write_bytes(b"x")
    (images / ".hidden.jpg").write_bytes(b"x")
    layout = read_layout(own_scenes)
    assert [pair.id for pair in layout.splits["training"]] == ["scene_00000"]
    assert sorted(map(str, layout.faults)) == [
        "annotations/training/scene_00002.png has no image in images/training",
        "images/training/scene_00000.jpg another image has the same name but for its suffix",
        "images/training/scene_00001.jpg has no annotations/training/scene_00001.png",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns of an empty file"),
        ("id,label\n1,a\n", "has the columns 'id', 'label'; expected index,name"),
        ("index,name,colour\n1,a,red\n", "expected index,name and, if colours are given"),
        ("index,name,red\n1,a,7\n", "colour columns red only"),
        ("index,name\n1,a\n3,b\n", r"each once; got \[1, 3\]"),
        ("index,name\n2,a\n3,b\n", r"each once; got \[2, 3\]"),
        ("index,name\n", r"each once; got \[\]"),
        ("index,name\none,a\n", "index 'one' of class 'a' is not a whole number"),
        ("index,name\n1,a\n2,\n", "no name for class 2"),
        ("index,name,red,green,blue\n1,a,0,0,256\n", "blue 256 of class 'a' is not between 0 and 255"),
        ("index,name\n1,caf\udce9\n", "not a UTF-8 CSV file"),
    ],
)
def test_classes_file_errors_name_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path)


def test_classes_from_zero_keep_raw_zero_as_a_class(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("index,name\n1,road\n0,sky\n")
    classes = read_classes(tmp_path)
    assert classes.names == ("sky", "road")
    assert not classes.reduce_zero_label
    assert len(set(classes.palette)) == 2


def test_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "images" / "training").mkdir(parents=True)
    (tmp_path / "images" / "training" / os.fsdecode(b"caf\xe9.jpg")).touch()
    with pytest.raises(UsageError, match=r"not UTF-8 .*caf"):
        read_layout(tmp_path)
