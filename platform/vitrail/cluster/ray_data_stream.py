"""A worker's batches made by Ray Data tasks, so that machines without a GPU can decode and augment for those with one.

    plan = StreamPlan(seed=0, global_batch=16, rank=rank, world_size=world_size)
    stream = RayDataStream(ShardReader("data/ade20k", "training"), recipe.transforms, plan)

Bit for bit what `ShardStream` gives. Each worker has an execution of its own: a task makes a *block*, this worker's
part of several consecutive steps, and blocks come back in order. So nothing depends on how Ray Data would split rows
among workers, no tail is dropped, and a restart begins at any step with any number of workers. What schedules the
tasks is an actor beside the worker: in the worker's own process, it would hold Python's lock and stretch every step.
"""

import pickle
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numpy as np
import ray.data
from ray.data import ExecutionResources

from vitrail.config import TransformConfig
from vitrail.data.batch import Assembly, Batch, SampleLoader
from vitrail.data.order import SampleOrder, StreamPlan
from vitrail.data.shards import ShardReader
from vitrail.data.stream import TrainingStream
from vitrail.errors import VitrailError

_BLOCK_BYTES = 128 << 20
_MAX_BLOCK_SAMPLES = 256
"""Between two blocks a CPU waits for Ray about 30 ms, so one should hold half a second's work; the first batch waits
for a whole one."""
_BLOCKS_IN_STORE = 12
"""Ray Data makes as many blocks ahead as the object store has room for: gigabytes that others may need."""
_BLOCKS_PER_EXECUTION = 400
"""Ray plans every block of an execution before the first: 40,000 would take minutes."""
_BLOCKS_AHEAD = 8
"""Before an execution ends, the next is started, which takes seconds."""


class StreamOrderError(VitrailError):
    """Ray Data handed over a block out of its turn."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(expected, found)
        self.expected, self.found = expected, found

    def __str__(self) -> str:
        return f"Ray Data gave a block of step {self.found} where step {self.expected} was due"


class RayDataStream(TrainingStream):
    """Batches that Ray Data tasks make; Ray must be started.

    CPUs must be left for the tasks: workers that take all of them would wait for ever.
    """

    def __init__(self, reader: ShardReader, transforms: TransformConfig, plan: StreamPlan) -> None:
        sample_bytes = 4 * transforms.crop_size**2
        samples = min(_MAX_BLOCK_SAMPLES, _BLOCK_BYTES // sample_bytes)
        self._maker = BlockMaker(
            folder=reader.folder.uri,
            split=reader.split,
            transforms=transforms,
            plan=plan,
            steps_per_block=max(1, samples // plan.share),
        )
        self._share = plan.share
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="ray-data")
        # Begun here, so that Ray Data starts while the model is still being built.
        self._executions = [self._begin(plan.first_step)]
        self._batches = self._all_batches(plan.first_step)

    def _next_batch(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """End the executions, at once: one that is left to the garbage collector may outlive Ray, and hang."""
        self._batches.close()
        self._starter.shutdown(wait=True, cancel_futures=True)
        for execution in self._executions:
            if not execution.cancelled() and execution.exception() is None:
                execution.result().close()

    def _begin(self, first_step: int) -> "Future[_Execution]":
        return self._starter.submit(_Execution, self._maker, first_step)

    def _all_batches(self, step: int) -> Generator[Batch]:
        steps_per_block = self._maker.steps_per_block
        while True:
            for number, block in enumerate(self._executions[0].result().blocks()):
                if number == _BLOCKS_PER_EXECUTION - _BLOCKS_AHEAD:
                    self._executions.append(self._begin(step + _BLOCKS_AHEAD * steps_per_block))
                for start in range(0, steps_per_block * self._share, self._share):
                    yield block.part(start, start + self._share)
                step += steps_per_block
            self._executions.pop(0).result().close()


class _Execution:
    """Ray Data at work on so many blocks from a step on; made, it is under way, and its first block is there."""

    def __init__(self, maker: "BlockMaker", first_step: int) -> None:
        count = _BLOCKS_PER_EXECUTION
        dataset = ray.data.range(count, override_num_blocks=count).map_batches(
            partial(_make_block, maker=maker, first_step=first_step), batch_size=None
        )
        context = dataset.context
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=_BLOCKS_IN_STORE * _BLOCK_BYTES
        )
        context.target_max_block_size = None  # or a block might be cut in two
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = -1  # a long validation is no reason to give up
        context.print_on_execution_start = False
        self._steps = range(first_step, first_step + count * maker.steps_per_block, maker.steps_per_block)
        (scheduled,) = dataset.streaming_split(1)
        self._rows: Generator[dict[str, Any]] = iter(scheduled.iter_batches(batch_size=None, prefetch_batches=1))
        self._first = next(self._rows)

    def blocks(self) -> Iterator[Batch]:
        """Every block, in order."""
        return map(_opened, chain([self._first], self._rows), self._steps)

    def close(self) -> None:
        """Stop its tasks and free its blocks."""
        self._rows.close()


@dataclass(frozen=True, kw_only=True)
class BlockMaker:
    """What a task needs to know to make any block of a stream."""

    folder: str
    split: str
    transforms: TransformConfig
    plan: StreamPlan
    steps_per_block: int

    def make(self, first_step: int) -> Batch:
        """This worker's samples of `steps_per_block` steps, one after the other."""
        load, order = _loader(self.folder, self.split, self.transforms, self.plan.seed)
        steps = range(first_step, first_step + self.steps_per_block)
        places = [place for step in steps for place in self.plan.places(order, step)]
        return Assembly(load, places).finish()


@lru_cache(maxsize=2)
def _loader(folder: str, split: str, transforms: TransformConfig, seed: int) -> tuple[SampleLoader, SampleOrder]:
    """Kept by the processes that run tasks, which Ray uses again."""
    reader = ShardReader(folder, split)
    return SampleLoader(reader, transforms, seed=seed), SampleOrder(len(reader), seed)


def _make_block(rows: dict[str, Any], *, maker: BlockMaker, first_step: int) -> dict[str, Any]:
    """One block as columns; an error goes along as data, because Ray Data would lose its type."""
    (number,) = rows["id"].tolist()
    step = first_step + number * maker.steps_per_block
    try:
        block = maker.make(step)
    except VitrailError as error:
        return {"step": np.array([step]), "error": [pickle.dumps(error)]}
    return {
        "step": np.full(len(block), step),
        "id": np.array(block.ids),
        "image": block.images,
        "label": block.labels,
        "window": block.windows,
    }


def _opened(columns: dict[str, Any], step: int) -> Batch:
    if "error" in columns:
        raise pickle.loads(columns["error"][0])
    if columns["step"][0] != step:
        raise StreamOrderError(step, int(columns["step"][0]))
    ids = tuple(map(str, columns["id"]))
    return Batch(images=columns["image"], labels=columns["label"], windows=columns["window"], ids=ids)
