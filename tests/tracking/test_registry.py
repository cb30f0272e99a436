import json
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from vitrail.errors import DataError, UnknownNameError, UsageError, VitrailError
from vitrail.tracking.environment import connect
from vitrail.tracking.registration import register
from vitrail.tracking.registry import download, list_models, show
from vitrail.tracking.tracker import start_run


def artifact_folder(tracking_uri: str, model_id: str) -> Path:
    return Path(unquote(urlparse(connect(tracking_uri).get_logged_model(model_id).artifact_location).path))


def test_register_then_download_gives_the_same_bytes_without_the_training_state(store, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()
    version = register(checkpoint, name="streets", tracking_uri=store)
    folder = download(version.uri, tmp_path / "fetched", tracking_uri=store)

    assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["MODEL_CARD.md", "checkpoint.json", "model.safetensors"]
    assert list(json.loads((folder / "checkpoint.json").read_text())["files"]) == ["model.safetensors"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_version_explains_itself(store, make_checkpoint):
    version = register(make_checkpoint(seed=3), name="streets", tracking_uri=store)

    assert float(version.tags["vitrail.mIoU"]) == 0.5
    assert version.tags["vitrail.data_fingerprint"] == "d" * 32
    assert version.tags["vitrail.recipe"] == "upernet_vit-nano_mln_128x128_1k"
    for text in (
        "50.00%",
        "20 of 20",
        "| building&emsp; | 25.00%&emsp; |",
        "| car&emsp; | does not occur&emsp; |",
        "streets",
        "random weights",
    ):
        assert text in version.description


def test_same_weights_make_one_version(store, make_checkpoint):
    first = register(make_checkpoint("a"), name="streets", tracking_uri=store)
    again = register(make_checkpoint("b"), name="streets", tracking_uri=store)
    other = register(make_checkpoint("c", seed=1), name="streets", tracking_uri=store)

    assert (first.number, again.number, other.number) == (1, 1, 2)
    (model,) = list_models(tracking_uri=store)
    assert [version.number for version in model.versions] == [2, 1]


def test_registration_that_stopped_half_way_is_completed(store, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()
    version = register(checkpoint, name="streets", tracking_uri=store)
    client = connect(store)
    client.delete_model_version("streets", "1")
    shutil.rmtree(artifact_folder(store, version.model_id))
    client.finalize_logged_model(version.model_id, "FAILED")

    again = register(checkpoint, name="streets", tracking_uri=store)
    assert again.model_id == version.model_id
    assert download(again.uri, tmp_path / "fetched", tracking_uri=store).is_dir()


def test_version_is_linked_to_its_run(store, make_checkpoint, tmp_path):
    tracker = start_run(
        tracking_uri=store, experiment="streets", run_name="r", run_key="run-0", folder=tmp_path / "run"
    )
    tracker.log_metrics({"val/mIoU": 0.5}, step=250)
    assert tracker.finish()
    version = register(make_checkpoint(), name="streets", run_id=tracker.run_id, tracking_uri=store)

    run = connect(store).get_run(tracker.run_id)
    assert version.run_id == tracker.run_id
    assert [output.model_id for output in run.outputs.model_outputs] == [version.model_id]
    assert len(connect(store).get_metric_history(tracker.run_id, "val/mIoU")) == 1
    (metric,) = [m for m in connect(store).get_logged_model(version.model_id).metrics if m.key == "registered/mIoU"]
    assert (metric.value, metric.dataset_name, metric.step) == (0.5, "streets", 250)


def test_changed_file_in_the_store_is_refused(store, make_checkpoint, tmp_path):
    version = register(make_checkpoint(), name="streets", tracking_uri=store)
    weights = artifact_folder(store, version.model_id) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")

    with pytest.raises(DataError, match=r"model\.safetensors has changed"):
        download(version.uri, tmp_path / "fetched", tracking_uri=store)
    assert not (tmp_path / "fetched").exists()


def test_version_whose_files_are_gone_is_refused(store, make_checkpoint, tmp_path):
    version = register(make_checkpoint(), name="streets", tracking_uri=store)
    folder = artifact_folder(store, version.model_id)
    shutil.rmtree(folder)
    folder.mkdir()

    with pytest.raises(DataError, match="is missing"):
        download(version.uri, tmp_path / "fetched", tracking_uri=store)


def test_download_keeps_what_is_there_and_never_writes_over_other_files(store, make_checkpoint, tmp_path):
    version = register(make_checkpoint(), name="streets", tracking_uri=store)
    folder = download(version.uri, tmp_path / "fetched", tracking_uri=store)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert download(version.uri, folder, tracking_uri=store) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    with pytest.raises(UsageError, match="something other"):
        download(version.uri, tmp_path / "mine", tracking_uri=store)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years"


def test_folder_that_cannot_be_written_is_a_wrong_command(store, make_checkpoint, tmp_path):
    version = register(make_checkpoint(), name="streets", tracking_uri=store)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="cannot write"):
        download(version.uri, tmp_path / "file" / "fetched", tracking_uri=store)


def test_names_that_do_not_exist_are_answered_with_close_ones(store, make_checkpoint, tmp_path):
    register(make_checkpoint(), name="streets", tracking_uri=store)
    connect(store).set_registered_model_alias("streets", "champion", "1")

    with pytest.raises(UnknownNameError, match="did you mean 'streets'"):
        download("models:/street/1", tmp_path / "x", tracking_uri=store)
    with pytest.raises(UnknownNameError, match="did you mean 'champion'"):
        show("streets", version="champoin", tracking_uri=store)
    with pytest.raises(UnknownNameError, match="version of model 'streets': '7'"):
        show("streets", version="7", tracking_uri=store)
    with pytest.raises(UsageError, match="models:/NAME@ALIAS"):
        download("streets@champion", tmp_path / "x", tracking_uri=store)
    assert show("streets", version="champion", tracking_uri=store).aliases == ("champion",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "checkpoint.json").unlink(), "no checkpoint.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors does not match"),
    ],
)
def test_incomplete_checkpoint_is_not_registered(store, make_checkpoint, damage, message):
    checkpoint = make_checkpoint()
    damage(checkpoint)
    with pytest.raises(VitrailError, match=message):
        register(checkpoint, name="streets", tracking_uri=store)
    assert list_models(tracking_uri=store) == []
