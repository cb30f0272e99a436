"""The stream of training batches that one worker sees, from any step on; here, decoded on the worker's own machine.

    plan = StreamPlan(seed=0, global_batch=16)
    with ShardStream(reader, recipe.transforms, plan, threads=4) as stream:
        batch = next(stream)

A batch depends on data set, seed, step and global batch size alone: number of workers, threads and processes, restarts,
and which kind of stream it is, do not change a bit of the global batch that the ranks' batches make up together.
"""

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from vitrail.config import TransformConfig
from vitrail.data.batch import Assembly, Batch, SampleLoader
from vitrail.data.decode_process import DecodeJob, DecodeProcess
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
    """Reads the shards in threads of the worker, or in processes beside it.

    Threads have a first batch at once, and hand it over without a copy; but a sixth of a sample's time holds Python's
    lock, so beyond a few cores processes are needed. While those start, threads make the batches.

    Args:
        threads: decode in that many threads, ahead of the consumer; 0 decodes in the consumer's own, when asked.
        processes: and in that many processes, once they are ready.
        prefetch: batches that are decoded ahead, at least; more where not all would have work otherwise.
    """

    def __init__(
        self,
        reader: ShardReader,
        transforms: TransformConfig,
        plan: StreamPlan,
        *,
        threads: int = 0,
        processes: int = 0,
        prefetch: int = 3,
    ) -> None:
        if threads < 0 or processes < 0 or prefetch < 1:
            raise UsageError(
                f"threads={threads} and processes={processes} must be at least 0 and prefetch={prefetch} at least 1"
            )
        self._load = SampleLoader(reader, transforms, seed=plan.seed)
        self._order, self._plan = SampleOrder(len(reader), plan.seed), plan
        self._next_step = plan.first_step
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        job = DecodeJob(folder=reader.folder.uri, split=reader.split, transforms=transforms, plan=plan)
        self._processes = ProcessTeam(job, processes) if processes else None
        self._ahead: deque[Assembly | Future[Batch]] = deque()
        # Small batches need more of them in the making, or threads would find nothing to do.
        self._prefetch = max(prefetch, 1 + -(-2 * threads // plan.share)) if threads or processes else 1
        self._fill()

    @property
    def has_processes(self) -> bool:
        """Whether batches that are begun now are made by processes."""
        return self._processes is not None and self._processes.is_ready()

    def _next_batch(self) -> Batch:
        self._fill()
        first = self._ahead.popleft()
        return first.finish() if isinstance(first, Assembly) else first.result()

    def close(self) -> None:
        """Drop what was decoded ahead and end the threads and processes."""
        self._ahead.clear()
        if self._processes is not None:
            self._processes.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        team = self._processes if self.has_processes else None
        while len(self._ahead) < (self._prefetch if team is None else max(self._prefetch, 2 * team.size)):
            if team is not None:
                self._ahead.append(team.submit(self._next_step))
            else:
                places = self._plan.places(self._order, self._next_step)
                self._ahead.append(Assembly(self._load, places, pool=self._pool))
            self._next_step += 1


class ProcessTeam:
    """Several decoding processes, each driven by a thread that waits for it."""

    def __init__(self, job: DecodeJob, size: int) -> None:
        self.size = size
        self._idle: SimpleQueue[DecodeProcess] = SimpleQueue()
        self._members = [DecodeProcess(job) for _ in range(size)]
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="decode-process")
        self._starts = [self._threads.submit(self._admit, member) for member in self._members]

    def is_ready(self) -> bool:
        """Whether all are; raises a `DecodeProcessError` if one ended before."""
        return all(start.done() and start.result() is None for start in self._starts)

    def submit(self, step: int) -> Future[Batch]:
        """The batch of `step`, when the next idle process will have made it."""
        return self._threads.submit(self._make, step)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for member in self._members:
            member.close()
        self._threads.shutdown(wait=True)

    def _admit(self, member: DecodeProcess) -> None:
        member.wait_ready()
        self._idle.put(member)

    def _make(self, step: int) -> Batch:
        member = self._idle.get()
        try:
            return member.make(step)
        finally:
            self._idle.put(member)
