"""The stream's batches: the same bits for any number of workers and threads, and after a restart at any step."""

import shutil
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seen import Seen, seen

from vitrail.config import TransformConfig
from vitrail.data.batch import SampleLoader
from vitrail.data.decode_process import DecodeJob, DecodeProcess, DecodeProcessError
from vitrail.data.order import SampleOrder, StreamPlan
from vitrail.data.shards import DamagedShardError, ShardReader
from vitrail.data.stream import ShardStream
from vitrail.errors import UsageError

CONFIG = TransformConfig(scale=(192, 48), crop_size=64)
GLOBAL_BATCH, STEPS = 12, 5


@pytest.fixture(scope="module")
def reader(dataset: Path) -> ShardReader:
    return ShardReader(dataset, "training")


def _stream(reader: ShardReader, *, threads: int = 0, processes: int = 0, **plan: Any) -> ShardStream:
    plan = {"seed": 3, "global_batch": GLOBAL_BATCH} | plan
    return ShardStream(reader, CONFIG, StreamPlan(**plan), threads=threads, processes=processes)


@pytest.fixture(scope="module")
def want(reader: ShardReader) -> list[list[Seen]]:
    """What one worker without threads sees, step by step."""
    with _stream(reader) as stream:
        return [seen(next(stream)) for _ in range(STEPS)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_global_batches_are_the_same_for_any_workers_and_threads(
    reader: ShardReader, want: list[list[Seen]], world_size: int, threads: int
) -> None:
    ranks = [_stream(reader, rank=r, world_size=world_size, threads=threads) for r in range(world_size)]
    assert [list(chain.from_iterable(seen(next(rank)) for rank in ranks)) for _ in range(STEPS)] == want
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("first_step", range(1, STEPS))
def test_restart_at_any_step_goes_on_as_if_nothing_had_been(
    reader: ShardReader, want: list[list[Seen]], first_step: int
) -> None:
    with _stream(reader, first_step=first_step, threads=2) as stream:
        assert [seen(next(stream)) for _ in range(first_step, STEPS)] == want[first_step:]


def test_samples_differ_between_epochs_and_seeds(reader: ShardReader, want: list[list[Seen]]) -> None:
    samples = list(chain.from_iterable(want))
    assert len(samples) > 4 * len(reader)
    assert len(set(samples)) == len(samples), "a sample came out the same in two epochs"
    with _stream(reader, seed=4) as stream:
        assert seen(next(stream)) != want[0]


def test_batch_holds_crops_padded_at_the_bottom_and_right(reader: ShardReader) -> None:
    with _stream(reader) as stream:
        batches = [next(stream) for _ in range(STEPS)]
    for batch in batches:
        assert batch.images.shape == (GLOBAL_BATCH, 3, 64, 64) and batch.images.dtype == np.uint8
        assert batch.labels.shape == (GLOBAL_BATCH, 64, 64) and batch.labels.dtype == np.uint8
        for (height, width), image, label in zip(batch.sizes, batch.images, batch.labels, strict=True):
            assert not image[:, height:].any() and not image[:, :, width:].any()
            assert (label[height:] == 255).all() and (label[:, width:] == 255).all()
            assert image[:, :height, :width].any() and (label[:height, :width] < 8).any()
    sizes = np.concatenate([batch.sizes for batch in batches])
    assert (sizes == 64).all(axis=1).any() and (sizes < 64).all(axis=1).any()


def test_channels_are_those_of_the_transformed_image(reader: ShardReader) -> None:
    with _stream(reader) as stream:
        batch = next(stream)
    load = SampleLoader(reader, CONFIG, seed=3)
    for slot, (epoch, index) in enumerate(SampleOrder(len(reader), seed=3).global_batch(0, GLOBAL_BATCH)):
        sample = load(epoch, index)
        height, width = sample.label.shape
        assert batch.ids[slot] == sample.id == reader.ids[index]
        np.testing.assert_array_equal(batch.images[slot, :, :height, :width].transpose(1, 2, 0), sample.image)


def test_damage_reaches_the_consumer(dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "copy"))
    for shard in ShardReader(folder, "training").manifest.splits["training"].shards:
        path = folder / shard.path
        data = bytearray(path.read_bytes())
        data[shard.blobs[0][0] + 5] ^= 1
        path.write_bytes(data)
    spoilt = ShardReader(folder, "training")
    with _stream(spoilt, threads=2) as stream, pytest.raises(DamagedShardError, match="fails its checksum"):
        next(stream)


def test_processes_take_over_from_the_threads_without_a_seam(reader: ShardReader) -> None:
    with _stream(reader) as plain, _stream(reader, threads=1, processes=2) as stream:
        team, by_processes = stream._processes, 0
        assert team is not None
        while by_processes < 2 * team.size + stream._prefetch + 2:  # all that threads had begun, and more
            by_processes += team.is_ready()
            assert seen(next(stream)) == seen(next(plain))
        pids = [member._process.pid for member in team._members]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_damage_and_death_of_a_process_reach_the_consumer(dataset: Path, reader: ShardReader, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "copy"))
    job = DecodeJob(
        folder=str(folder), split="training", transforms=CONFIG, plan=StreamPlan(seed=3, global_batch=GLOBAL_BATCH)
    )
    with DecodeProcess(job) as process:
        process.wait_ready()
        with _stream(reader) as stream:
            assert seen(process.make(0)) == seen(next(stream))
        for shard in ShardReader(folder, "training").manifest.splits["training"].shards:
            with (folder / shard.path).open("r+b") as file:  # in place: the process has it mapped
                file.seek(shard.blobs[0][0] + 5)
                file.write(b"damage")
        with pytest.raises(DamagedShardError, match="fails its checksum"):
            process.make(1)
        process._process.kill()
        with pytest.raises(DecodeProcessError, match="ended by itself"):
            process.make(2)


def test_closing_ends_the_threads_and_waiting_is_counted_once(reader: ShardReader) -> None:
    before = threading.active_count()
    with _stream(reader, threads=3) as stream:
        next(stream)
        assert threading.active_count() > before
        assert stream.take_wait_s() > 0
        assert stream.take_wait_s() == 0
    assert threading.active_count() == before


def test_wrong_settings_are_refused(reader: ShardReader) -> None:
    with pytest.raises(UsageError, match="12 is not enough for 13 workers"):
        _stream(reader, world_size=13)
    with pytest.raises(UsageError, match="threads=-1"):
        _stream(reader, threads=-1)
