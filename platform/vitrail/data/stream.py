"""The stream of training batches that one worker sees, from any step on; here, decoded ahead by threads of its process.

    plan = StreamPlan(seed=0, global_batch=16)
    with ShardStream(reader, recipe.transforms, plan, threads=4) as stream:
        batch = next(stream)

A batch depends on data set, seed, step and global batch size alone: number of workers, threads and restarts, and which
kind of stream it is, do not change a bit of the global batch that the ranks' batches make up together.
"""

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from vitrail.config import TransformConfig
from vitrail.data.batch import Assembly, Batch, SampleLoader
from vitrail.data.order import SampleOrder, StreamPlan
from vitrail.data.shards import ShardReader
from vitrail.errors import UsageError


class TrainingStream(Iterator[Batch]):
    """An endless iterator of one rank's part of each global batch."""

    _wait_s = 0.0

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DamagedShardError: a sample's bytes are not those that were written.
        """
        begin = time.perf_counter()
        batch = self._next_batch()
        self._wait_s += time.perf_counter() - begin
        return batch

    def take_wait_s(self) -> float:
        """Seconds that the consumer waited for batches since the last call."""
        waited, self._wait_s = self._wait_s, 0.0
        return waited

    @abstractmethod
    def _next_batch(self) -> Batch: ...

    @abstractmethod
    def close(self) -> None:
        """Drop what was decoded ahead and free what did it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ShardStream(TrainingStream):
    """Reads the shards in the worker itself.

    Threads do it, not processes: of the time that a sample takes, the decoders, which let other threads run, are four
    fifths, and threads have a first batch at once and hand it over without a copy.

    Args:
        threads: decode in that many threads, ahead of the consumer; 0 decodes in the consumer's own, when asked.
        prefetch: batches that are decoded ahead, at least; more where all threads would not have work otherwise.
    """

    def __init__(
        self,
        reader: ShardReader,
        transforms: TransformConfig,
        plan: StreamPlan,
        *,
        threads: int = 0,
        prefetch: int = 3,
    ) -> None:
        if threads < 0 or prefetch < 1:
            raise UsageError(f"threads={threads} must be at least 0 and prefetch={prefetch} at least 1")
        self._load = SampleLoader(reader, transforms, seed=plan.seed)
        self._order, self._plan = SampleOrder(len(reader), plan.seed), plan
        self._next_step = plan.first_step
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._ahead: deque[Assembly] = deque()
        # Small batches need more of them in the making, or threads would find nothing to do.
        self._prefetch = max(prefetch, 1 + -(-2 * threads // plan.share)) if threads else 1
        self._fill()

    def _next_batch(self) -> Batch:
        self._fill()
        return self._ahead.popleft().finish()

    def close(self) -> None:
        """Drop what was decoded ahead and end the threads."""
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while len(self._ahead) < self._prefetch:
            places = self._plan.places(self._order, self._next_step)
            self._ahead.append(Assembly(self._load, places, pool=self._pool))
            self._next_step += 1
