import json
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from vitrail.data import ade20k
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

    data = folder / "data"
    assert (data / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert sorted(path.name for path in data.iterdir()) == ["checkpoint.json", "model.safetensors"]
    assert list(json.loads((data / "checkpoint.json").read_text())["files"]) == ["model.safetensors"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == set(json.loads(version.tags["vitrail.files"]))
    assert {"MLmodel", "requirements.txt", "MODEL_CARD.md", "SHA256SUMS"} < files
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_version_explains_itself(store, make_checkpoint):
    version = register(make_checkpoint(seed=3), name="streets", tracking_uri=store)

    assert float(version.tags["vitrail.mIoU"]) == 0.5
    assert version.tags["vitrail.data_fingerprint"] == "d" * 32
    assert version.tags["vitrail.data_uri"] == "s3://bucket/streets"
    assert version.tags["vitrail.code"] == "0123abc+changes"
    assert version.tags["vitrail.recipe"] == "upernet_vit-nano_mln_128x128_1k"
    for text in (
        "50.00%",
        "20 of 20",
        "| building&emsp; | 25.00%&emsp; |",
        "| car&emsp; | does not occur&emsp; |",
        "streets",
        "random weights",
        "0123abc+changes",
        "s3://bucket/streets",
        'load_model("models:/streets@champion")',
        "mlflow models serve -m models:/streets@champion",
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


def test_files_of_an_earlier_registration_are_replaced_by_the_listed_ones(store, make_checkpoint, tmp_path):
    version = register(make_checkpoint(), name="streets", tracking_uri=store)
    client = connect(store)
    client.delete_model_version("streets", "1")
    uploaded = artifact_folder(store, version.model_id) / "code"
    shutil.move(next(uploaded.iterdir()), uploaded / "vitrail_served_00000000")  # as of another revision

    again = register(make_checkpoint("again"), name="streets", tracking_uri=store)
    assert again.model_id == version.model_id
    fetched = download(again.uri, tmp_path / "fetched", tracking_uri=store)
    (package,) = (fetched / "code").iterdir()
    assert package.name != "vitrail_served_00000000"


def test_card_of_many_classes_fits_into_mlflows_database_and_is_whole_in_the_files(store, make_checkpoint, tmp_path):
    classes = [f"{name}, of a name that takes long" for name in ade20k.CLASSES]
    checkpoint = make_checkpoint()
    path = checkpoint / "checkpoint.json"
    described = json.loads(path.read_text())
    iou = [index / 150 for index in range(150)]
    described |= {"classes": classes, "palette": ade20k.PALETTE, "scores": {**described["scores"], "iou": iou}}
    path.write_text(json.dumps(described))
    version = register(checkpoint, name="streets", tracking_uri=store)

    assert 4000 < len(version.description) <= 5000
    for text in (classes[149], classes[0], "more in MODEL_CARD.md", "mlflow models serve"):
        assert text in version.description
    card = download(version.uri, tmp_path / "fetched", tracking_uri=store) / "MODEL_CARD.md"
    assert all(name in card.read_text() for name in classes)


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
    folder = artifact_folder(store, version.model_id)
    (source,) = folder.glob("code/*/evaluation/served.py")
    for path in (folder / "data" / "model.safetensors", source, folder / "MLmodel"):
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + b"\x7f")
        with pytest.raises(DataError, match=f"{path.name} has changed"):
            download(version.uri, tmp_path / "fetched", tracking_uri=store)
        assert not (tmp_path / "fetched").exists()
        path.write_bytes(sound)


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
    before = (folder / "data" / "model.safetensors").stat().st_mtime_ns
    assert download(version.uri, folder, tracking_uri=store) == folder
    assert (folder / "data" / "model.safetensors").stat().st_mtime_ns == before

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
