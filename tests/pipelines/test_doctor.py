"""`pipelines/doctor.py` from the command line: exit codes, the report, and the preview."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrail.data.scenes import draw_scenes

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def run(run_script: Any) -> Any:
    return partial(run_script, "pipelines/doctor.py")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Scenes that a test may spoil."""
    folder = tmp_path / "scenes"
    draw_scenes(folder, train=10, val=4, size=48, seed=1)
    return folder


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def test_sound_source_exits_with_0_and_writes_json_and_page(scenes: Path, tmp_path: Path, run: Any) -> None:
    code, output = run(scenes, "--out", tmp_path / "out")
    assert code == 0, output
    assert "Nothing is wrong with this data set." in output and "report.html" in output
    content = report(tmp_path / "out")
    assert content["groups"] == [] and content["splits"]["training"]["readable"] == 10
    assert "Nothing is wrong" in (tmp_path / "out" / "report.html").read_text()


def test_errors_exit_with_1_and_are_counted_with_the_way_out(scenes: Path, tmp_path: Path, run: Any) -> None:
    training = scenes / "images/training"
    (training / "scene_00000.jpg").write_bytes((training / "scene_00000.jpg").read_bytes()[:-300])
    (scenes / "annotations/training/scene_00001.png").unlink()
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        there = scenes / folder
        shutil.copy(there / f"validation/scene_00001.{suffix}", there / f"training/<i>leak.{suffix}")
    code, output = run(scenes, "--out", tmp_path / "out")
    assert code == 1
    for line in ("1 x unreadable_image: Fetch", "1 x no_mask: Add the mask", "1 x leak: Take it out of the training"):
        assert line in output
    kinds = {group["kind"]["name"]: group["count"] for group in report(tmp_path / "out")["groups"]}
    assert kinds == {"unreadable_image": 1, "no_mask": 1, "leak": 1}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;i&gt;leak.jpg" in page and "<i>" not in page and page.count("data:image/jpeg;base64,") == 3


def test_warnings_alone_exit_with_0(scenes: Path, tmp_path: Path, run: Any) -> None:
    Image.open(scenes / "images/training/scene_00003.jpg").convert("L").save(scenes / "images/training/scene_00003.jpg")
    code, output = run(scenes, "--out", tmp_path / "out")
    assert code == 0 and "No errors, and 1 warning to look at." in output and "grey image" in output


def test_real_ade20k_images_have_no_errors(ade20k_sample: Path, tmp_path: Path, run: Any) -> None:
    code, output = run(ade20k_sample, "--out", tmp_path / "out")
    assert code == 0, output
    assert report(tmp_path / "out")["zero_label"]["read_as"] == "unlabelled"
    assert {group["kind"]["name"] for group in report(tmp_path / "out")["groups"]} == {
        "class_never_seen",
        "missing_split",
        "classes_assumed",
    }


def test_prepared_data_set_is_checked_to_the_byte(tiny_data: Path, tmp_path: Path, run: Any) -> None:
    code, output = run(tiny_data, "--out", tmp_path / "out")
    assert code == 0, output
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    shards = sorted(data.glob("training-*.arrow"))
    content = bytearray(shards[0].read_bytes())
    content[content.index(b"\xff\xd8\xff\xe0") + 60] ^= 1
    shards[0].write_bytes(content)
    shards[1].unlink()
    code, output = run(data, "--out", tmp_path / "out")
    assert code == 1 and "2 x damaged_shard" in output and "manifest_mismatch" in output
    details = [str(f["path"] + f["detail"]) for f in report(tmp_path / "out")["groups"][0]["listed"]]
    assert shards[0].name in details[0] and "sample 'scene_00000' fails its checksum" in details[0]
    assert shards[1].name in details[1] and "does not exist" in details[1]


def test_preview_is_the_same_for_the_same_seed(tiny_data: Path, tmp_path: Path, run: Any) -> None:
    recipe = ("--augmented", 4, "--recipe", "upernet_vit-nano_128x128_1k")
    pictures = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        code, output = run(tiny_data, "--out", tmp_path / name, *recipe, "--seed", seed)
        assert code == 0, output
        pictures.append((tmp_path / name / "preview.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    assert "data:image/png;base64," in (tmp_path / "a" / "report.html").read_text()


def test_wrong_usage_exits_with_2(scenes: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    for arguments, message in [
        ((tmp_path / "nowhere",), "nowhere is not a folder"),
        ((tmp_path,), "has neither images/training nor images/validation"),
        ((scenes, "--out", scenes / "doctor"), "name a folder outside it with --out"),
        ((scenes, "--out", tmp_path / "file"), "cannot create"),
        ((scenes, "--out", tmp_path / "out", "--recipe", "upernet_vit"), "unknown recipe"),
    ]:
        code, output = run(*arguments)
        assert code == 2 and message in output, output
