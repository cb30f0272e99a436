"""Many checkpoints, on a disk and in a real S3 server: found, fetched once, pruned, and refused with a reason."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from gcs_server import GcsServer, gcs_server
from s3_server import CREDENTIALS, S3Server, endpoint_query, free_port, s3_server
from test_checkpoint import info

from vitrail.aside import ABANDONED_AFTER_S, clear_leftovers, writing_folder
from vitrail.checkpoint import INFO, STATE, WEIGHTS, CheckpointError, CheckpointWriteError
from vitrail.checkpoint_cache import checkpoint_cache
from vitrail.checkpoint_store import CheckpointStore, StoredCheckpoint
from vitrail.data.storage import StorageError
from vitrail.errors import UsageError, VitrailError
from vitrail.tracking.fetch import fetch_model
from vitrail.training.checkpoint import load_state, load_weights, save_checkpoint

Damage = Callable[[StoredCheckpoint, str], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    with gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**CREDENTIALS, "VITRAIL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"bucket-{uuid4().hex[:8]}"
    server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def remote(server: S3Server, bucket: str) -> CheckpointStore:
    return CheckpointStore.at(f"s3://{bucket}/runs/x/checkpoints{server.query}")


@pytest.fixture(params=["disk", "s3", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    if request.param == "disk":
        return CheckpointStore.at(tmp_path / "run" / "checkpoints")
    if request.param == "gcs":
        google, name = request.getfixturevalue("google"), f"bucket-{uuid4().hex[:8]}"
        google.make_bucket(name)
        return CheckpointStore.at(google.uri(name, "runs/x/checkpoints"))
    found: CheckpointStore = request.getfixturevalue("remote")
    return found


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2000,), float(step)), "b": torch.tensor([step])}


def save(store: CheckpointStore, step: int, miou: float = 0.5) -> StoredCheckpoint:
    return save_checkpoint(store.root, info(step, miou), weights=weights(step), state={"step": step})


def holds(folder: Path, step: int) -> bool:
    found = load_weights(folder)
    same = all(torch.equal(found[name], tensor) for name, tensor in weights(step).items())
    return same and found.keys() == weights(step).keys()


def overwrite(found: StoredCheckpoint, name: str) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(found.place.read(name))
    data[len(data) // 2] ^= 1
    found.place.write(name, bytes(data))


def remove(found: StoredCheckpoint, name: str) -> None:
    found.place.delete(name)


def steps(store: CheckpointStore) -> list[int]:
    return [found.info.step for found in store.checkpoints()]


def test_saved_checkpoints_are_listed_found_and_loaded(store: CheckpointStore) -> None:
    assert (store.checkpoints(), store.newest(), store.best()) == ([], None, None)
    for step, miou in ((20, 0.3), (10, 0.7), (30, 0.2)):
        saved = save(store, step, miou)
        assert saved == StoredCheckpoint.at(saved.place)
    assert steps(store) == [10, 20, 30]
    newest, best = store.newest(), store.best()
    assert newest and best
    assert (newest.info.step, newest.miou, best.info.step, best.miou) == (30, 0.2, 10, 0.7)
    folder = newest.fetch()
    assert holds(folder, 30) and load_state(folder) == {"step": 30}
    assert newest.info.best == info(1).best and newest.info.mlflow_run_id == "0123"


def test_best_of_equals_is_the_later_and_one_without_a_score_is_none(store: CheckpointStore) -> None:
    for step, miou in ((1, 0.5), (2, 0.5), (3, float("nan"))):
        save(store, step, miou)
    best = store.best()
    assert best and best.info.step == 2


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (overwrite, WEIGHTS, "does not match its checksum"),
        (overwrite, STATE, "does not match its checksum"),
        (remove, STATE, "is missing"),
        (remove, INFO, r"has no checkpoint\.json: it is being written or deleted, or that was interrupted"),
    ],
)
def test_newest_that_is_damaged_or_incomplete_is_passed_over(
    store: CheckpointStore, damage: Damage, name: str, message: str
) -> None:
    for step in (1, 2, 3):
        last = save(store, step)
    damage(last, name)
    with pytest.warns(UserWarning, match=message) as caught:
        found = store.newest()
    assert found and found.info.step == 2 and holds(found.fetch(), 2)
    assert all(str(last.place) in str(each.message) for each in caught)


def test_damaged_best_gives_way_to_the_next(store: CheckpointStore) -> None:
    for step, miou in ((1, 0.6), (2, 0.9), (3, 0.1)):
        saved = save(store, step, miou)
        if step == 2:
            overwrite(saved, WEIGHTS)
    with pytest.warns(UserWarning, match="does not match its checksum"):
        found = store.best()
    assert found and found.info.step == 1


def test_state_is_neither_fetched_nor_checked_where_it_is_not_wanted(store: CheckpointStore) -> None:
    saved = save(store, 1)
    remove(saved, STATE)
    assert holds(saved.fetch(state=False), 1)
    with pytest.raises(CheckpointError, match=r"state\.pt is missing"):
        saved.fetch()


def test_prune_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    for step, miou in ((1, 0.6), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)):
        save(store, step, miou)
    deleted = store.prune(newest=2, best=1)
    assert [name[:11] for name in deleted] == ["step_000001", "step_000003"]
    assert steps(store) == [2, 4, 5]
    assert store.prune(newest=2, best=1) == []
    assert len(store.root.folders()) == 3
    store.delete(deleted[0])  # there no more


def test_prune_counts_no_incomplete_checkpoint_as_the_newest(store: CheckpointStore) -> None:
    save(store, 1)
    remove(save(store, 2), WEIGHTS)
    with pytest.warns(UserWarning, match=r"model\.safetensors is missing"):
        assert store.prune(newest=1, best=0) == []
    assert StoredCheckpoint.at(store.root.child(store.root.folders()[0])).info.step == 1


def test_checkpoint_of_another_format_is_neither_used_nor_deleted(store: CheckpointStore) -> None:
    save(store, 1)
    newer = save(store, 2)
    values = json.loads(newer.place.read(INFO))
    newer.place.write(INFO, json.dumps({**values, "format_version": 99}).encode())
    with pytest.warns(UserWarning, match="format 99 is newer"):
        found = store.newest()
    assert found and found.info.step == 1
    with pytest.warns(UserWarning, match="format 99 is newer"):
        assert store.prune(newest=1, best=0) == []
    assert newer.place.size_bytes(WEIGHTS)


def test_readers_find_a_good_checkpoint_while_others_are_deleted(store: CheckpointStore) -> None:
    saved, over, faults = 0, threading.Event(), list[str]()
    save(store, 0, 0.0)

    def read(find: Callable[[], StoredCheckpoint | None]) -> None:
        while not over.is_set() and not faults:
            at_least = saved
            try:
                found = find()
            except Exception as error:
                faults.append(repr(error))
                raise
            if found is None or found.info.step < at_least:
                faults.append(f"{find} gave {found} when {at_least} was saved")

    readers = [threading.Thread(target=read, args=(find,)) for find in (store.newest, store.best)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for reader in readers:
            reader.start()
        for step in range(1, 150 if store.root.local else 8):
            save(store, step, step / 1000)
            saved = step
            store.prune(newest=1, best=1)
        over.set()
        for reader in readers:
            reader.join()
    assert not faults
    messages = [str(each.message) for each in caught]
    # A store shows what is half there, and it is named as that; a disk never does.
    assert not [message for message in messages if store.root.local or "has no checkpoint.json" not in message]


def test_each_object_is_fetched_once_and_again_only_when_its_copy_is_damaged(
    server: S3Server, bucket: str, remote: CheckpointStore
) -> None:
    saved = save(remote, 7)
    key = f"{bucket}/runs/x/checkpoints/{saved.name}"

    def gets() -> list[int]:
        return [server.count("GET", f"{key}/{name}") for name in (WEIGHTS, STATE)]

    assert gets() == [0, 0]
    saved.fetch(state=False)
    assert gets() == [1, 0]
    threads = [threading.Thread(target=saved.fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = saved.fetch()
    assert gets() == [1, 1]
    assert sorted(path.name for path in folder.iterdir()) == [INFO, WEIGHTS, STATE]
    assert StoredCheckpoint.at(folder).info == saved.info
    assert (folder / INFO).stat().st_mtime_ns == saved.saved_ns
    (folder / STATE).write_bytes(b"damaged")
    assert load_state(saved.fetch()) == {"step": 7}
    assert gets() == [1, 2]


def test_copies_that_nobody_used_for_long_are_forgotten(remote: CheckpointStore) -> None:
    first, second = save(remote, 1), save(remote, 2)
    old = first.fetch()
    long_ago = time.time() - 30 * 3600
    os.utime(old.with_name(f".{old.name}.lock"), (long_ago, long_ago))
    new = second.fetch()
    assert not old.exists() and new.exists()
    assert holds(first.fetch(), 1) and new.exists()


def test_model_named_by_its_uri_is_fetched_without_its_state(
    server: S3Server, remote: CheckpointStore, tmp_path: Path
) -> None:
    saved = save(remote, 3)
    folder = fetch_model(saved.place.uri, root=tmp_path, tracking_uri="unused")
    assert holds(folder, 3) and not (folder / STATE).exists()
    with pytest.raises(UsageError, match=r"checkpoints is not a checkpoint: it has no checkpoint\.json"):
        fetch_model(remote.root.uri, root=tmp_path, tracking_uri="unused")


def test_description_is_uploaded_last_and_nothing_stays_on_this_machine(
    server: S3Server, bucket: str, remote: CheckpointStore
) -> None:
    saved = save(remote, 1)
    log = server.log.read_text()
    uploads = [line for line in log.splitlines() if f"/{bucket}/runs/x/checkpoints/{saved.name}/" in line]
    uploads = [line for line in uploads if "PUT" in line or "uploadId" in line]
    assert INFO in uploads[-1] and sum(INFO in line for line in uploads) < len(uploads)
    first = next(index for index, line in enumerate(uploads) if INFO in line)
    assert all(INFO in line for line in uploads[first:])
    assert list(checkpoint_cache().iterdir()) == []


def test_description_is_deleted_first(server: S3Server, bucket: str, remote: CheckpointStore) -> None:
    saved = save(remote, 1)
    already = len(server.log.read_text())
    remote.delete(saved.name)
    requests = re.findall(r'"\S*(DELETE|POST) (\S+) ', server.log.read_text()[already:])
    assert requests[0] == ("DELETE", f"/{bucket}/runs/x/checkpoints/{saved.name}/{INFO}")
    assert requests[1:] and remote.root.folders() == []


def test_what_was_left_long_ago_in_a_store_is_cleared_by_a_save(
    remote: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(remote, 1)
    left = save(remote, 2)
    remove(left, INFO)
    with pytest.warns(UserWarning, match=r"has no checkpoint\.json"):
        save(remote, 3)
        assert left.name in remote.root.folders()  # another process may be uploading it
        assert steps(remote) == [1, 3]
    monkeypatch.setattr("vitrail.checkpoint_store.ABANDONED_AFTER_S", -1.0)
    save(remote, 4)
    assert left.name not in remote.root.folders()
    assert steps(remote) == [1, 3, 4]


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path: Path) -> None:
    with writing_folder(tmp_path) as mine:
        machine = mine.name.split("-")[1]
        (mine / "part").write_bytes(b"half")
        gone = [f".writing-{machine}-{_dead_pid()}-00000000", ".deleting-00000000"]
        stay = [f".writing-{machine}-{os.getppid()}-00000000", ".writing-ffffffff-1-00000000", ".writing-0a1b2c3d"]
        for name in (*gone, *stay):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_bytes(b"")
        clear_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, *stay}
        long_ago = time.time() - ABANDONED_AFTER_S - 60
        for name in stay:
            os.utime(tmp_path / name / "file", (long_ago, long_ago))
        clear_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, *stay}  # the folders themselves are fresh
        for name in stay:
            os.utime(tmp_path / name, (long_ago, long_ago))
        clear_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []


@contextmanager
def _refused() -> Iterator[pytest.ExceptionInfo[CheckpointWriteError]]:
    """A save that is refused, in one line and without the secret."""
    with pytest.raises(CheckpointWriteError) as caught:
        yield caught
    assert isinstance(caught.value, VitrailError)
    assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)


def test_store_that_refuses_leaves_the_last_checkpoint_good(server: S3Server, remote: CheckpointStore) -> None:
    save(remote, 1)
    with server.require_known_keys(), _refused() as caught:
        save(remote, 2)
    assert str(remote.root) in str(caught.value) and "AWS Error" in str(caught.value)
    assert len(remote.root.folders()) == 1 and list(checkpoint_cache().iterdir()) == []
    found = remote.newest()
    assert found and found.info.step == 1


def test_bucket_that_does_not_exist_is_named(server: S3Server) -> None:
    nowhere = CheckpointStore.at(f"s3://no-such-bucket/x{server.query}")
    with _refused() as caught:
        save(nowhere, 1)
    assert "s3://no-such-bucket/x" in str(caught.value) and "no earlier one was touched" in str(caught.value)


@pytest.mark.slow
def test_store_that_does_not_answer_is_no_empty_store() -> None:
    gone = CheckpointStore.at(f"s3://bucket/x{endpoint_query(f'http://127.0.0.1:{free_port()}')}")
    with pytest.raises(StorageError, match="Could not connect"):  # a run would begin again from nothing
        gone.newest()
