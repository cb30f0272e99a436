"""Data sets in an object store, against a real server: the same data set as on a disk, and clear refusals."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from s3_server import CREDENTIALS, S3Server, endpoint_query, free_port, s3_server

from vitrail.data.layout import read_layout
from vitrail.data.manifest import Manifest
from vitrail.data.shard_cache import cache_folder
from vitrail.data.shard_writer import ShardPlan, assemble_manifest, plan_shards, write_shard
from vitrail.data.shards import DamagedShardError, ShardReader
from vitrail.data.storage import Folder, StorageError
from vitrail.errors import DataError, UsageError, VitrailError

SECRET = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**CREDENTIALS, "VITRAIL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: S3Server, scenes: Path) -> str:
    """A bucket of its own, with the scenes in `source/scenes`."""
    name = f"bucket-{uuid4().hex[:8]}"
    server.upload(scenes, name, "source/scenes")
    return name


@pytest.fixture
def src(server: S3Server, bucket: str) -> str:
    return f"s3://{bucket}/source/scenes{server.query}"


@pytest.fixture
def dst(server: S3Server, bucket: str, src: str) -> str:
    """A prepared data set in the store."""
    uri = f"s3://{bucket}/out{server.query}"
    _prepare(src, uri)
    return uri


def _plans(src: str) -> list[ShardPlan]:
    return plan_shards(read_layout(src), shard_size_bytes=20_000)


def _prepare(src: str, dst: str) -> Manifest:
    plans = _plans(src)
    reports = [write_shard(plan, source=src, folder=dst) for plan in plans]
    manifest = assemble_manifest(read_layout(src), plans, reports)
    manifest.save(dst)
    return manifest


def test_layout_in_a_store_equals_that_on_a_disk(src: str, scenes: Path) -> None:
    here, there = read_layout(scenes), read_layout(src)
    assert there.classes == here.classes and there.faults == here.faults == () and there.folder.name == "scenes"
    for split in ("training", "validation"):
        timeless = [
            [pair.model_copy(update={"modified_ns": 0}) for pair in each.splits[split]] for each in (here, there)
        ]
        assert timeless[0] == timeless[1]
        assert all(pair.modified_ns > 0 for pair in there.splits[split])


def test_data_set_in_a_store_has_the_same_fingerprint_and_bytes(dst: str, dataset: Path) -> None:
    here, there = Manifest.load(dataset), Manifest.load(dst)
    assert there.fingerprint == here.fingerprint
    assert there.source_signature != here.source_signature  # the objects' times are their own
    shards = [shard for split in here.splits.values() for shard in split.shards]
    assert len(shards) > 2
    for shard in shards:
        assert Folder.at(dst).read(shard.path) == (dataset / shard.path).read_bytes()


def test_interrupted_prepare_goes_on_without_writing_finished_shards_again(
    server: S3Server, bucket: str, src: str
) -> None:
    out, plans = f"s3://{bucket}/interrupted{server.query}", _plans(src)
    first = [write_shard(plan, source=src, folder=out) for plan in plans[:2]]
    nowhere = f"s3://{bucket}/gone{server.query}"  # a shard could not be written again from there
    assert [write_shard(plan, source=nowhere, folder=out) for plan in plans[:2]] == first
    assert _prepare(src, out).splits["training"].num_samples == 13
    asked = f"{bucket}/interrupted/{plans[0].name}.arrow"
    assert server.count("PUT", asked) + server.count("POST", f"{asked}?uploads") == 1


def test_reader_gives_the_same_samples_and_fetches_each_shard_once(
    server: S3Server, bucket: str, dst: str, dataset: Path
) -> None:
    here = ShardReader(dataset, "training")
    for _ in range(2):  # the second as another process would: with the files of the first
        there = ShardReader(dst, "training")
        assert there.ids == here.ids
        for index in range(len(here)):
            np.testing.assert_array_equal(there[index].image, here[index].image)
            np.testing.assert_array_equal(there[index].label, here[index].label)
    for shard in here.manifest.splits["training"].shards:
        assert server.count("GET", f"{bucket}/out/{shard.path}") == 1


def test_damaged_or_missing_object_is_named(server: S3Server, bucket: str, dst: str, tmp_path: Path) -> None:
    key = f"out/{Manifest.load(dst).splits['validation'].shards[0].path}"
    data = bytearray(server.client().get_object(Bucket=bucket, Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    server.client().put_object(Bucket=bucket, Key=key, Body=bytes(data))
    with pytest.raises(DataError, match=rf"^s3://{bucket}/{key} is damaged: .* not those of the manifest"):
        ShardReader(dst, "validation")[0]
    server.client().delete_object(Bucket=bucket, Key=key)
    with pytest.raises(DataError, match=rf"^s3://{bucket}/{key} is listed in the manifest but does not exist"):
        ShardReader(dst, "validation")[0]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_damage_in_the_cache_is_mended_by_deleting_it(dst: str) -> None:
    reader = ShardReader(dst, "validation")
    want, (path,) = reader[0], cache_folder().rglob("validation-00000.arrow")
    data = bytearray(path.read_bytes())
    data[reader.manifest.splits["validation"].shards[0].blobs[0][0] + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedShardError, match="fails its checksum; delete it, and it is fetched again"):
        ShardReader(dst, "validation")[0]
    path.unlink()
    assert np.array_equal(ShardReader(dst, "validation")[0].label, want.label)


def test_cache_that_is_full_or_cannot_be_written_is_named(
    dst: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, limits = ShardReader(dst, "validation"), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk: EFBIG in place of ENOSPC
        with pytest.raises(
            UsageError, match=r"cannot keep shards in .*: File too large; name a place in VITRAIL_CACHE"
        ):
            reader[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot keep shards in .*/file/.* VITRAIL_CACHE"):
        reader[0]


def test_endpoint_in_the_uri_stays_out_of_names_and_containment(server: S3Server) -> None:
    folder, query = Folder.at(f"S3://bucket/a/b/{server.query}"), server.query
    assert (folder.name, str(folder), folder.uri) == ("b", "s3://bucket/a/b", f"s3://bucket/a/b/{query}")
    assert folder.contains(Folder.at(f"s3://bucket/a/b/c{query}")) and folder.contains(folder)
    assert not folder.contains(Folder.at(f"s3://bucket/a/bc{query}"))
    assert not folder.contains(Folder.at(f"s3://bucket/a/b/c{endpoint_query('http://127.0.0.1:1')}"))
    assert not folder.contains(Folder.at("/bucket/a/b/c"))
    server.client().create_bucket(Bucket="bucket")
    folder.make_writable()
    folder.write("x", b"12")
    assert (folder.read("x"), folder.size_bytes("x"), [entry.name for entry in folder.files()]) == (b"12", 2, ["x"])
    folder.delete("x")
    folder.delete("x")
    assert folder.size_bytes("x") is None


def test_endpoint_of_the_environment_is_used(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    assert read_layout(f"s3://{bucket}/source/scenes").folder.name == "scenes"


def _refusal(action: Any) -> str:
    """The message of a refusal: one line, soon, without the secret."""
    begin = time.monotonic()
    with pytest.raises(VitrailError) as caught:
        action()
    assert isinstance(caught.value, UsageError | DataError)
    message = str(caught.value)
    assert time.monotonic() - begin < 20
    assert "\n" not in message and SECRET not in message and "hunter2" not in message
    return message


def test_missing_bucket_is_refused(server: S3Server) -> None:
    uri = f"s3://no-such-bucket/x{server.query}"
    assert "s3://no-such-bucket/x is not a folder" in _refusal(lambda: read_layout(uri))
    assert "s3://no-such-bucket/x: " in (message := _refusal(lambda: Folder.at(uri).make_writable()))
    assert "bucket does not exist" in message
    assert "does not exist; make one with" in _refusal(lambda: Manifest.load(uri))


@pytest.mark.slow
def test_store_that_does_not_answer_is_given_up_soon() -> None:
    uri = f"s3://bucket/x{endpoint_query(f'http://127.0.0.1:{free_port()}')}"
    assert "s3://bucket/x: " in (message := _refusal(lambda: read_layout(uri)))
    assert "Could not connect to server" in message
    assert "Could not connect to server" in _refusal(lambda: Folder.at(uri).make_writable())


def test_outage_while_preparing_is_not_taken_for_faulty_samples(src: str, tmp_path: Path) -> None:
    plan = _plans(src)[-1].model_copy(update={"pairs": _plans(src)[-1].pairs[:1]})
    gone = f"s3://bucket/x{endpoint_query(f'http://127.0.0.1:{free_port()}')}"
    with pytest.raises(StorageError, match="Could not connect to server"):
        write_shard(plan, source=gone, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_credentials_are_refused(server: S3Server, bucket: str, dst: str) -> None:
    with server.require_known_keys():
        for action in (
            lambda: Manifest.load(dst),
            lambda: read_layout(f"s3://{bucket}/source/scenes{server.query}"),
            lambda: Folder.at(dst).read("manifest.json"),
            lambda: Folder.at(dst).make_writable(),
        ):
            message = _refusal(action)
            assert f"s3://{bucket}/" in message and "AWS Error" in message


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter2@bucket/x",
        "s3://key:hunter2/secret@bucket/x",
        "S3://key:hunter2/secret@bucket/x?scheme=http",
        "s3://bucket/x?secret_key=hunter2",
        "s3://bucket/x y?secret_key=hunter2",
        "s3://bucket/x#hunter2",
        "nofs://bucket/x?password=hunter2",
        "s3://",
    ],
)
def test_uri_that_cannot_be_used_is_refused_without_its_secret(uri: str) -> None:
    message = _refusal(lambda: Folder.at(uri))
    if "@" in uri:
        assert "://…@bucket/x has credentials in it" in message and "AWS_ACCESS_KEY_ID" in message
