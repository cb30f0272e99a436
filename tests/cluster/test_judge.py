"""Versions judged on real images, and models compared, from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from true_checkpoint import write_true_checkpoint
from typer.testing import CliRunner

from vitrail.checkpoint import INFO, DataSource
from vitrail.cli import app
from vitrail.cluster.prepare import prepare
from vitrail.data.manifest import Manifest
from vitrail.data.scenes import draw_scenes
from vitrail.tracking.registration import register
from vitrail.tracking.registry import show
from vitrail.tracking.store import default_tracking_uri, ensure_store

pytestmark = pytest.mark.slow
NAME = "scenes"


@pytest.fixture(scope="module")
def scenes(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set with enough validation images to judge by."""
    root = tmp_path_factory.mktemp("judged")
    draw_scenes(root / "scenes", train=2, val=16, size=48, seed=3)
    prepare(root / "scenes", root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def checkpoints(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints that see one class everywhere: the rarest and the commonest."""
    manifest = Manifest.load(scenes)
    pixels = manifest.split("validation").class_pixels
    order = sorted(range(manifest.num_classes), key=lambda index: pixels[index])
    source = DataSource(
        name=NAME,
        fingerprint=manifest.fingerprint,
        val_images=manifest.split("validation").num_samples,
        uri=str(scenes),
    )
    root = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name, index in {"poor": order[0], "better": order[-1]}.items():
        folder = write_true_checkpoint(root / name, classes=manifest.num_classes, data=source, sees_only=index)
        description = json.loads((folder / INFO).read_text())  # which names classes of its own
        told = {"classes": manifest.classes, "reduce_zero_label": manifest.reduce_zero_label}
        (folder / INFO).write_text(json.dumps(description | told))
        found[name] = folder
    return found


@pytest.fixture
def root(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A folder whose store has the poor model as version 1 and the better as version 2."""
    uri = default_tracking_uri(tmp_path)
    ensure_store(uri)
    for checkpoint in checkpoints.values():
        register(checkpoint, name=NAME, tracking_uri=uri)
    return tmp_path


def vitrail(root: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *arguments, "--root", str(root)], env={"COLUMNS": "220"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_better_version_takes_the_place_of_a_poor_one_and_not_the_other_way_round(
    ray_session: None, scenes: Path, root: Path
) -> None:
    first = vitrail(root, "promote", NAME, "1")
    assert "scenes version 1 is now champion" in first and "on 16 of 16 images" in first
    kept = evaluations(root, "1")

    second = vitrail(root, "promote", NAME, "2")
    assert "scenes version 2 is now champion instead of version 1" in second
    assert "mIoU differs by +" in second
    assert evaluations(root, "1") == kept  # what is known of the champion is not found out again

    back = vitrail(root, "promote", NAME, "1", code=1)
    assert "did not pass the gate" in back and "gain: mIoU differs by -" in back
    assert "is champion already" in vitrail(root, "promote", NAME, "2", code=2)
    assert "against the gate" in vitrail(root, "promote", NAME, "1", "--force", "--reason", "a test")
    assert "version 2 is champion again" in vitrail(root, "rollback", NAME)


@pytest.mark.nightly
@pytest.mark.long
def test_stored_evaluation_that_was_changed_is_made_again(ray_session: None, root: Path) -> None:
    vitrail(root, "promote", NAME, "1")
    kept = evaluations(root, "1")
    (counts,) = (root / "artifacts").rglob("evaluations/*.npz")
    counts.write_bytes(counts.read_bytes()[:-1])
    told = vitrail(root, "promote", NAME, "2")
    assert "not what was stored" in told and "version 2 is now champion" in told
    assert evaluations(root, "1") != kept


def test_changed_weights_are_never_promoted(ray_session: None, root: Path) -> None:
    model_id = show(NAME, version="2", tracking_uri=default_tracking_uri(root)).model_id
    (weights,) = (root / "artifacts").rglob(f"{model_id}/artifacts/data/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "does not match its checksum" in vitrail(root, "promote", NAME, "2", code=1)


@pytest.mark.long
def test_champion_whose_files_are_gone_gives_way_by_force_alone(ray_session: None, root: Path) -> None:
    vitrail(root, "promote", NAME, "1")
    model_id = show(NAME, version="1", tracking_uri=default_tracking_uri(root)).model_id
    (folder,) = (root / "artifacts").rglob(f"{model_id}/artifacts")
    shutil.rmtree(folder)
    shutil.rmtree(root / "models")
    refused = vitrail(root, "promote", NAME, "2", code=1)
    assert "the champion cannot be evaluated" in refused and "champion evaluated: on none of 16 images" in refused
    assert "against the gate" in vitrail(root, "promote", NAME, "2", "--force", "--reason", "its files are gone")


@pytest.mark.long
def test_data_that_is_gone_is_to_be_named(ray_session: None, scenes: Path, root: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(scenes, tmp_path / "moved")
    hidden = scenes.rename(scenes.parent / "hidden")
    try:
        assert "does not exist" in vitrail(root, "promote", NAME, "1", code=2)
        assert "is now champion" in vitrail(root, "promote", NAME, "1", "--data", str(moved))
    finally:
        hidden.rename(scenes)


def test_comparison_tells_the_classes_apart_and_draws_what_is_disputed(
    ray_session: None, scenes: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pictures"
    models = [f"models:/{NAME}/{number}" for number in (2, 1)]
    told = vitrail(root, "compare", *models, "--data", str(scenes), "--out", str(out), "--pictures", "3")
    assert "over 16 images, mIoU differs by +" in told
    assert len(list(out.glob("*.jpg"))) == 3
    same = vitrail(root, "compare", models[0], models[0], "--data", str(scenes), "--out", str(out / "same"))
    assert "differs by +0.00 [+0.00, +0.00]" in same
    assert not list((out / "same").glob("*.jpg"))


def evaluations(root: Path, version: str) -> dict[str, str]:
    tags = show(NAME, version=version, tracking_uri=default_tracking_uri(root)).tags
    found = {key: value for key, value in tags.items() if key.startswith("vitrail.evaluation.")}
    assert len(found) == 1
    return found
