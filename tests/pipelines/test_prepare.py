"""`pipelines/prepare.py` from the command line: what it writes, and how it answers wrong input."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vitrail.cluster.prepare import prepare
from vitrail.data.manifest import Manifest
from vitrail.data.scenes import draw_scenes
from vitrail.data.shards import ShardReader
from vitrail.errors import UsageError

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def run(run_script: Any) -> Any:
    return partial(run_script, "pipelines/prepare.py")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    draw_scenes(folder, train=4, val=2, size=48, seed=1)
    return folder


@pytest.fixture
def src(drawn: Path, tmp_path: Path) -> Path:
    """Scenes that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "scenes"))


def test_prepare_writes_a_data_set_and_says_what_it_holds(src: Path, tmp_path: Path, run: Any) -> None:
    code, output = run(src, tmp_path / "out")
    assert code == 0, output
    assert "scenes: 8 classes (classes.csv)" in output
    assert "training" in output and "is ready: fingerprint" in output
    manifest = Manifest.load(tmp_path / "out")
    assert [split.num_samples for split in manifest.splits.values()] == [4, 2]
    assert ShardReader(tmp_path / "out", "validation")[1].image.shape == (48, 48, 3)


def test_run_again_keeps_what_is_there_and_another_source_is_refused(src: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    first = prepare(src, out, shard_size_bytes=1)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.arrow")}
    (out / "manifest.json").unlink()  # as if interrupted before the end
    assert prepare(src, out, shard_size_bytes=1) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.arrow")} == times
    code, output = run(src, out)
    assert code == 2 and "already holds the data set 'scenes'" in output and "--overwrite" in output
    assert run(src, out, "--overwrite")[0] == 0
    assert sorted(path.name for path in out.glob("*.arrow")) == ["training-00000.arrow", "validation-00000.arrow"]


def test_real_ade20k_images_are_prepared_with_a_validation_split_alone(ade20k_sample: Path, tmp_path: Path) -> None:
    manifest = prepare(ade20k_sample, tmp_path / "out")
    reader = ShardReader(tmp_path / "out", "validation")
    assert (manifest.num_classes, list(manifest.splits), len(reader)) == (150, ["validation"], 3)
    for index, name in enumerate(reader.ids):
        raw = np.asarray(Image.open(ade20k_sample / f"annotations/validation/{name}.png"))
        np.testing.assert_array_equal(reader[index].label, raw - np.uint8(1))  # 0 wraps to 255, which is ignored
    with pytest.raises(UsageError, match="has no split 'training'; it has validation"):
        ShardReader(tmp_path / "out", "training")


def _no_mask(src: Path) -> None:
    (src / "annotations/training/scene_00002.png").unlink()


def _small_mask(src: Path) -> None:
    _write(src / "annotations/training/scene_00001.png", np.ones((40, 48), np.uint8))


def _colour_mask(src: Path) -> None:
    _write(src / "annotations/validation/scene_00000.png", np.full((48, 48, 3), 128, np.uint8))


def _high_label(src: Path) -> None:
    label = np.ones((48, 48), np.uint8)
    label[7, 5] = 9
    _write(src / "annotations/training/scene_00003.png", label)


def _truncated_jpeg(src: Path) -> None:
    path = src / "images/training/scene_00000.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def _text_for_jpeg(src: Path) -> None:
    (src / "images/training/scene_00000.jpg").write_text("not found")


def _truncated_mask(src: Path) -> None:
    path = src / "annotations/training/scene_00000.png"
    path.write_bytes(path.read_bytes()[:-60])


def _write(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_mask, "images/training/scene_00002.jpg has no annotations/training/scene_00002.png"),
        (_small_mask, "annotations/training/scene_00001.png is 48x40 (width x height) and its image 48x48"),
        (_colour_mask, "annotations/validation/scene_00000.png is a colour image (mode RGB)"),
        (_high_label, "annotations/training/scene_00003.png has label 9 at x=5, y=7, above the last of 8 classes, 8"),
        (_truncated_jpeg, "images/training/scene_00000.jpg cannot be read to its end (image file is truncated"),
        (_text_for_jpeg, "images/training/scene_00000.jpg is not a JPEG or PNG file"),
        (_truncated_mask, "annotations/training/scene_00000.png cannot be read to its end"),
    ],
)
def test_faulty_sample_stops_or_is_left_out_and_listed(
    src: Path, tmp_path: Path, run: Any, spoil: Any, message: str
) -> None:
    spoil(src)
    code, output = run(src, tmp_path / "out")
    assert code == 1
    assert "error: 1 file in" in output and "--on-error skip" in output and message in output
    assert not (tmp_path / "out" / "manifest.json").exists()

    code, output = run(src, tmp_path / "out", "--on-error", "skip")
    assert code == 0 and f"left out: {message}" in output
    manifest = Manifest.load(tmp_path / "out")
    assert sum(split.num_samples for split in manifest.splits.values()) == 5
    assert len(manifest.faults) == 1 and message in str(manifest.faults[0])


def test_all_faults_are_counted_and_the_first_are_shown(src: Path, tmp_path: Path, run: Any) -> None:
    _no_mask(src)
    for path in (src / "annotations").rglob("*.png"):
        path.write_bytes(b"")
    code, output = run(src, tmp_path / "out")
    assert code == 1
    assert "error: 6 files in" in output and "and 1 more" in output
    code, output = run(src, tmp_path / "out", "--on-error", "skip")
    assert code == 1 and "6 files" in output and not (tmp_path / "out" / "manifest.json").exists()


def test_wrong_paths_and_options_exit_with_2(src: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    for arguments, message in [
        ((tmp_path / "nowhere", tmp_path / "out"), "nowhere is not a folder"),
        ((src, tmp_path / "file"), "cannot create"),
        ((src, src / "out"), "lies in the source folder"),
        ((src, tmp_path / "out", "--on-error", "hide"), "'hide' is not one of"),
    ]:
        code, output = run(*arguments)
        assert code == 2 and message in output, output


def test_write_failure_in_a_worker_exits_with_2(src: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "out" / "training-00000.arrow").mkdir(parents=True)
    code, output = run(src, tmp_path / "out")
    assert code == 2 and "cannot write" in output and "training-00000.arrow" in output, output
    assert not list((tmp_path / "out").glob(".*.part"))
