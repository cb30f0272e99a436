"""Files that somebody else wrote to do harm: named outside of their folder, or made to run code. Nothing outside is
read, written, moved or deleted, and nothing is run."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from s3_server import CREDENTIALS, s3_server

from vitrail.checkpoint import CheckpointError, stays_inside, verify
from vitrail.checkpoint_store import StoredCheckpoint
from vitrail.data.storage import Folder
from vitrail.errors import DataError
from vitrail.evaluation.image_counts import ImageCounts
from vitrail.tracking.environment import connect
from vitrail.tracking.journal import Journal
from vitrail.tracking.registration import register
from vitrail.tracking.registry import FILES_TAG, download
from vitrail.tracking.tracker import start_run

SECRET = b"a file of somebody's home"
NAMES = ["../precious", "/tmp/precious", "x/../../precious", "..", "a//b", "", "./x", "a\\..\\b", "a\0b"]


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """What no file of others may touch, beside the folders of each test."""
    path = tmp_path / "precious"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_name_that_leaves_its_folder_is_known_as_such(name):
    assert not stays_inside(name)
    assert stays_inside("model.safetensors") and stays_inside("data/..x/a.b")


@pytest.mark.parametrize("name", ["../precious", "PRECIOUS", "folder/../../precious", "sub/file"])
def test_checkpoint_that_lists_files_elsewhere_is_refused(make_checkpoint, precious, name):
    folder = make_checkpoint()
    name = str(precious) if name == "PRECIOUS" else name
    rewrite(folder, **{name: hashlib.sha256(SECRET).hexdigest()})
    for action in (lambda: verify(folder), lambda: StoredCheckpoint.at(folder)):
        with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
            action()


def rewrite(folder: Path, **files: str) -> None:
    """List more files in a checkpoint's description."""
    description = json.loads((folder / "checkpoint.json").read_text())
    description["files"] |= files
    (folder / "checkpoint.json").write_text(json.dumps(description))


def test_checkpoint_of_a_store_writes_nothing_outside_the_cache(make_checkpoint, precious, tmp_path, monkeypatch):
    for name, value in {**CREDENTIALS, "VITRAIL_CACHE": str(tmp_path / "cache" / "deep")}.items():
        monkeypatch.setenv(name, value)
    folder = make_checkpoint()
    rewrite(folder, **{"../../../../precious": hashlib.sha256(b"bad").hexdigest()})
    before = everything(tmp_path)
    with s3_server(tmp_path) as server:
        server.upload(folder, "bucket", "runs/step_1")
        place = Folder.at(f"s3://bucket/runs/step_1{server.query}")
        with pytest.raises(CheckpointError, match="damaged"):
            StoredCheckpoint.at(place).fetch()
    assert everything(tmp_path) - before <= {"requests.log"}
    assert precious.read_bytes() == SECRET


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("climb", ["../" * 20, ""])
def test_version_whose_tag_lists_files_elsewhere_is_refused(store, make_checkpoint, precious, tmp_path, climb):
    version = register(make_checkpoint(), name="streets", tracking_uri=store)
    listed = {f"{climb}{str(precious)[1:] if climb else precious}": hashlib.sha256(SECRET).hexdigest()}
    files = json.loads(version.tags[FILES_TAG]) | listed
    connect(store).set_model_version_tag("streets", "1", FILES_TAG, json.dumps(files))
    with pytest.raises(CheckpointError, match="would lie outside"):
        download("models:/streets/1", tmp_path / "fetched", tracking_uri=store)
    assert precious.read_bytes() == SECRET
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("name", ["../../precious", "PRECIOUS"])
def test_outbox_that_names_files_elsewhere_sends_and_deletes_nothing(store, precious, tmp_path, name):
    journal = Journal(tmp_path / "run" / "outbox")
    name = str(precious) if name == "PRECIOUS" else "../../../precious"
    assert (journal.files / name).read_bytes() == SECRET
    for record in ({"kind": "files", "files": {name: "taken.txt"}}, {"kind": "batch", "a": 1}, {"kind": "__class__"}):
        journal.append(record)
    tracker = start_run(
        tracking_uri=store, experiment="e", run_name="r", run_key="key", folder=tmp_path / "run", tags={"a": "b"}
    )
    assert tracker.finish()
    client = connect(store)
    assert client.list_artifacts(tracker.run_id) == []
    assert client.get_run(tracker.run_id).data.tags["a"] == "b"
    assert precious.read_bytes() == SECRET
    reasons = [entry["reason"] for entry in journal.quarantined()]
    assert sorted(reasons) == [
        "it names files outside of the outbox",
        "there are no records of kind '__class__'",
        "there are no records of kind 'batch'",
    ]


class TouchesAFile:
    """What a pickle may do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_evaluation_with_a_pickle_in_it_is_refused_and_not_run(tmp_path):
    path = tmp_path / "counts.npz"
    np.savez(path, names=np.array([TouchesAFile(tmp_path / "touched")], dtype=object))
    with pytest.raises(DataError):
        ImageCounts.from_bytes(path.read_bytes(), "an evaluation")
    assert not (tmp_path / "touched").exists()
