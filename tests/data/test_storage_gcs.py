"""Google's storage, against a server that speaks its API: data sets, checkpoints, and clear refusals."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from gcs_server import GcsServer, gcs_server
from s3_server import free_port
from true_checkpoint import write_true_checkpoint

from vitrail.checkpoint_store import StoredCheckpoint
from vitrail.data.layout import read_layout
from vitrail.data.manifest import Manifest
from vitrail.data.shard_writer import assemble_manifest, plan_shards, write_shard
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder, StorageError
from vitrail.errors import UsageError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    with gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def bucket(server: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    name = f"bucket-{uuid4().hex[:8]}"
    server.make_bucket(name)
    return name


def upload(folder: Path, place: Folder) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place.upload(path, path.relative_to(folder).as_posix())


def test_folder_is_written_read_listed_and_emptied(server: GcsServer, bucket: str, tmp_path: Path) -> None:
    folder = Folder.at(server.uri(bucket, "a/b"))
    assert (folder.name, folder.local, folder.files(), folder.is_folder()) == ("b", None, [], False)
    folder.make_writable()
    folder.write("x", b"12")
    (tmp_path / "large").write_bytes(large := bytes(range(256)) * 70_000)
    folder.child("c").upload(tmp_path / "large", "y")
    assert (folder.read("x"), folder.size_bytes("x"), folder.size_bytes("none")) == (b"12", 2, None)
    assert (folder.child("c").read("y"), folder.is_folder("c"), folder.folders()) == (large, True, ["c"])
    assert [(entry.name, entry.size_bytes) for entry in folder.files()] == [("x", 2)]
    assert folder.files()[0].modified_ns > 0
    folder.child("c").fetch("y", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == large
    folder.write("x", b"345")
    assert folder.read("x") == b"345"
    for _ in range(2):
        folder.delete("x")
        folder.delete_folder("c")
    assert (folder.size_bytes("x"), folder.is_folder("c")) == (None, False)
    with pytest.raises(FileNotFoundError):
        folder.read("x")


def test_prepared_data_set_is_the_same_as_on_a_disk(
    server: GcsServer, bucket: str, scenes: Path, dataset: Path
) -> None:
    src, dst = server.uri(bucket, "source/scenes"), server.uri(bucket, "out")
    upload(scenes, Folder.at(src))
    layout = read_layout(src)
    plans = plan_shards(layout, shard_size_bytes=20_000)
    reports = [write_shard(plan, source=src, folder=dst) for plan in plans]
    assemble_manifest(layout, plans, reports).save(dst)
    assert Manifest.load(dst).fingerprint == Manifest.load(dataset).fingerprint
    here, there = ShardReader(dataset, "training"), ShardReader(dst, "training")
    assert there.ids == here.ids
    assert all(np.array_equal(here[index].label, there[index].label) for index in range(len(here)))


def test_checkpoint_is_fetched_and_checked(server: GcsServer, bucket: str, tmp_path: Path) -> None:
    here = write_true_checkpoint(tmp_path)
    place = Folder.at(server.uri(bucket, "runs/step_000004"))
    upload(here, place)
    found = StoredCheckpoint.at(place)
    fetched = found.fetch(state=False)
    assert (fetched / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
    assert str(found) == f"gs://anonymous@{bucket}/runs/step_000004"


def test_missing_bucket_is_refused(server: GcsServer) -> None:
    folder = Folder.at(server.uri("no-such-bucket", "x"))
    with pytest.raises(UsageError, match=r"gs://anonymous@no-such-bucket/x: Google Error NOT_FOUND: .*404") as caught:
        folder.make_writable()
    assert len(str(caught.value)) < 200
    with pytest.raises(UsageError, match="does not exist; make one with"):
        Manifest.load(folder)


def test_store_that_does_not_answer_is_given_up_when_it_was_said() -> None:
    uri = f"gs://anonymous@bucket/x?endpoint_override=127.0.0.1%3A{free_port()}&scheme=http&retry_limit_seconds=2"
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"gs://anonymous@bucket/x: Google Error UNAVAILABLE: .*Could not connect"):
        Folder.at(uri).files()
    assert time.monotonic() - begin < 60


def test_name_and_password_are_refused() -> None:
    with pytest.raises(UsageError, match="has credentials in it") as caught:
        Folder.at("gs://key:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
