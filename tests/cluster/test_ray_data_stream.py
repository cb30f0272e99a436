"""Batches made by Ray Data are, bit for bit, those that a worker reads itself."""

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from seen import Seen, seen

from vitrail.cluster import ray_data_stream
from vitrail.cluster.ray_data_stream import RayDataStream
from vitrail.config import TransformConfig
from vitrail.data.order import StreamPlan
from vitrail.data.shards import DamagedShardError, ShardReader
from vitrail.data.stream import ShardStream, TrainingStream

CONFIG = TransformConfig(scale=(192, 48), crop_size=64)
GLOBAL_BATCH, STEPS = 12, 8  # with one worker two steps a block, and three blocks an execution


@pytest.fixture(scope="module")
def reader(tiny_data: Path) -> ShardReader:
    return ShardReader(tiny_data, "training")


@pytest.fixture(autouse=True)
def small_executions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few small blocks an execution, so that little is made ahead and a few steps cross every seam."""
    monkeypatch.setattr(ray_data_stream, "_MAX_BLOCK_SAMPLES", 2 * GLOBAL_BATCH)
    monkeypatch.setattr(ray_data_stream, "_BLOCKS_PER_EXECUTION", 3)
    monkeypatch.setattr(ray_data_stream, "_BLOCKS_AHEAD", 2)


def plan(**changes: Any) -> StreamPlan:
    return StreamPlan(**({"seed": 3, "global_batch": GLOBAL_BATCH} | changes))


def global_batches(streams: list[TrainingStream], steps: int) -> list[list[Seen]]:
    """What the streams of all ranks give together, step by step."""
    batches = [list(chain.from_iterable(seen(next(stream)) for stream in streams)) for _ in range(steps)]
    for stream in streams:
        stream.close()
    return batches


@pytest.fixture(scope="module")
def want(reader: ShardReader) -> list[list[Seen]]:
    """What one worker sees that reads the shards itself."""
    return global_batches([ShardStream(reader, CONFIG, plan())], STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 3])
def test_global_batches_are_those_of_the_in_worker_reader(
    ray_session: None, reader: ShardReader, want: list[list[Seen]], world_size: int
) -> None:
    streams = [RayDataStream(reader, CONFIG, plan(rank=r, world_size=world_size)) for r in range(world_size)]
    assert global_batches([*streams], STEPS) == want


@pytest.mark.long
def test_run_goes_on_with_other_workers_and_the_other_stream(
    ray_session: None, reader: ShardReader, want: list[list[Seen]]
) -> None:
    stop = 3
    before = [ShardStream(reader, CONFIG, plan(rank=r, world_size=3), threads=1) for r in range(3)]
    after = [RayDataStream(reader, CONFIG, plan(rank=r, world_size=2, first_step=stop)) for r in range(2)]
    assert global_batches([*before], stop) + global_batches([*after], STEPS - stop) == want


@pytest.mark.slow
def test_damage_reaches_the_consumer_as_the_error_it_is(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data, tmp_path / "copy"))
    for shard in ShardReader(folder, "training").manifest.splits["training"].shards:
        path = folder / shard.path
        data = bytearray(path.read_bytes())
        data[shard.blobs[0][0] + 5] ^= 1
        path.write_bytes(data)
    with (
        RayDataStream(ShardReader(folder, "training"), CONFIG, plan()) as stream,
        pytest.raises(DamagedShardError, match="fails its checksum"),
    ):
        next(stream)
