"""Saving that is killed at any moment, and disks that fill: the newest good checkpoint is there, and nothing half."""

import multiprocessing
import random
import resource
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from s3_server import CREDENTIALS, s3_server
from test_checkpoint import info

from vitrail.checkpoint import CheckpointWriteError
from vitrail.checkpoint_store import CheckpointStore, StoredCheckpoint
from vitrail.training.checkpoint import load_state, load_weights, save_checkpoint


def tensors(step: int, size_bytes: int = 1 << 20) -> dict[str, torch.Tensor]:
    return {"w": torch.full((size_bytes // 4,), float(step))}


def save(root: Path | str, step: int, weights_bytes: int = 1 << 20, state_bytes: int = 4) -> StoredCheckpoint:
    state = {"step": step, "moments": tensors(step, state_bytes)}
    return save_checkpoint(root, info(step, step % 7 / 10), weights=tensors(step, weights_bytes), state=state)


def _save_for_ever(root: str, first: int, says: Connection) -> None:
    """Save and prune until killed, saying what was begun and what is done."""
    store = CheckpointStore.at(root)
    for step in range(first, 1_000_000):
        says.send(("begun", step))
        save(root, step)
        says.send(("saved", step))
        store.prune(newest=2, best=1)


def _kill_after(root: str, first: int, delay_s: float) -> tuple[int, int]:
    """Let another process save, kill it, and return the last steps it saved and began."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitrail.training.checkpoint", "pytest", "boto3"])  # slow imports, once
    listens, says = context.Pipe(duplex=False)
    process = context.Process(target=_save_for_ever, args=(root, first, says))
    process.start()
    says.close()
    last = {"saved": first - 1, "begun": first - 1}
    listens.poll(60)
    time.sleep(delay_s)
    process.kill()
    process.join()
    with suppress(EOFError):
        while True:
            what, step = listens.recv()
            last[what] = step
    return last["saved"], last["begun"]


def _check_kills(root: str, kills: int, longest_s: float) -> int:
    """Kill that often; each time the newest is one that was saved or just being saved, and all listed are whole."""
    store, step, chance = CheckpointStore.at(root), 0, random.Random()
    for _ in range(kills):
        delay_s = chance.uniform(0, longest_s)
        saved, begun = _kill_after(root, step + 1, delay_s)
        found = store.newest()
        step = found.info.step if found else 0
        assert max(saved, 0) <= step <= begun, f"killed after {delay_s} s"
        for each in store.checkpoints():
            folder = each.fetch()
            assert torch.equal(load_weights(folder)["w"], tensors(each.info.step)["w"])
            assert load_state(folder)["step"] == each.info.step
    return step


@pytest.mark.slow
def test_killed_saving_to_a_disk_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = _check_kills(str(tmp_path), kills=4, longest_s=0.15)
        save(tmp_path, last + 1)
        assert CheckpointStore.at(tmp_path).prune(newest=1, best=0)
    assert [path.name for path in tmp_path.iterdir()] == [f"step_{last + 1:06d}"]


def test_killed_saving_to_a_store_leaves_only_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CREDENTIALS, "VITRAIL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path) as server:
        server.client().create_bucket(Bucket="bucket")
        root = f"s3://bucket/x{server.query}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*has no checkpoint\.json")
            last = _check_kills(root, kills=3, longest_s=0.8)
            save(root, last + 1)
            CheckpointStore.at(root).prune(newest=1, best=0)
            assert [found.info.step for found in CheckpointStore.at(root).checkpoints()] == [last + 1]
    staged = [path.name for path in (tmp_path / "cache" / "checkpoints").glob(".writing-*")]
    assert staged == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("weights_bytes", "state_bytes"), [(3 << 20, 4), (4, 3 << 20)])
def test_full_disk_is_named_and_leaves_the_last_checkpoint_good(
    tiny_disk: Path, weights_bytes: int, state_bytes: int
) -> None:
    root = tiny_disk / "checkpoints"
    save(root, 1, 100_000)
    with pytest.raises(CheckpointWriteError) as caught:
        save(root, 2, weights_bytes, state_bytes)
    message = str(caught.value)
    assert f"to {root}: No space left on device; it needs 3.1 MB; 0.9 MB are free there" in message
    assert "step_000001, the last good one, is untouched" in message
    assert [path.name for path in root.iterdir()] == ["step_000001"]
    newest = CheckpointStore.at(root).newest()
    assert newest and torch.equal(load_weights(newest.fetch())["w"], tensors(1, 100_000)["w"])
    save(root, 2, 100_000)


def test_disk_that_fills_at_any_byte_gives_a_whole_checkpoint_or_none(tiny_disk: Path) -> None:
    root, outcomes = tiny_disk / "checkpoints", set()
    save(root, 1, 100_000)
    for step, size in enumerate(range(380_000, 480_000, 2_000), start=2):
        try:
            save(root, step, size, size).fetch()
            CheckpointStore.at(root).delete(f"step_{step:06d}")
            outcomes.add("saved")
        except CheckpointWriteError as error:
            outcomes.add(error.reason)
        assert [path.name for path in root.iterdir()] == ["step_000001"]
    assert outcomes == {"saved", "No space left on device"}


@pytest.mark.parametrize(("weights_bytes", "state_bytes"), [(200_000, 4), (4, 200_000)])
def test_limit_on_the_size_of_files_is_as_a_full_disk(tmp_path: Path, weights_bytes: int, state_bytes: int) -> None:
    save(tmp_path, 1, 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(CheckpointWriteError, match=r"File too large; it needs 0\.2 MB; .* MB are free there"):
            save(tmp_path, 2, weights_bytes, state_bytes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointWriteError, match=r"/file/checkpoints: Not a directory"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_full_disk_on_the_way_to_a_store_is_named_by_its_place_here(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CREDENTIALS, "VITRAIL_CACHE": str(tiny_disk)}.items():
        monkeypatch.setenv(name, value)
    with s3_server(tiny_disk.parent) as server:
        server.client().create_bucket(Bucket="bucket")
        root = f"s3://bucket/x{server.query}"
        save(root, 1, 100_000)
        with pytest.raises(CheckpointWriteError) as caught:
            save(root, 2, 3 << 20)
        assert f"to {tiny_disk}/checkpoints (VITRAIL_CACHE), on its way to s3://bucket/x: No space" in str(caught.value)
        found = CheckpointStore.at(root).newest()
    assert found and found.info.step == 1
    assert not list((tiny_disk / "checkpoints").glob(".writing-*"))
