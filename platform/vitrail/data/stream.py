"""The stream of training batches that one worker sees, from any step on, decoded ahead by threads of this process.

    with BatchStream(reader, recipe.transforms, seed=0, global_batch=16, threads=4) as stream:
        batch = next(stream)

A batch depends on data set, seed, step and global batch size alone: number of workers, threads and restarts do not
change a bit of the global batch that the ranks' batches make up together. The stream has no end.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from vitrail.config import IGNORE_INDEX, TransformConfig
from vitrail.data.codec import UInt8Array
from vitrail.data.order import SampleOrder, slice_for
from vitrail.data.shards import Sample, ShardReader
from vitrail.data.transforms import TrainTransform
from vitrail.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of N samples, padded at the bottom and right: images with 0, labels with 255."""

    images: UInt8Array
    """(N, 3, S, S), RGB."""
    labels: UInt8Array
    """(N, S, S), train ids."""
    sizes: NDArray[np.int64]
    """(N, 2): height and width of each crop without its padding."""
    ids: tuple[str, ...]


class BatchStream(Iterator[Batch]):
    """An endless iterator of this rank's part of each global batch, beginning with that of `first_step`.

    Args:
        threads: decode in that many threads, ahead of the consumer; 0 decodes in the consumer's own, when asked.
        prefetch: batches that are decoded ahead, at least; more where all threads would not have work otherwise.
    """

    def __init__(
        self,
        reader: ShardReader,
        transforms: TransformConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        threads: int = 0,
        prefetch: int = 3,
    ) -> None:
        if threads < 0 or prefetch < 1:
            raise UsageError(f"threads={threads} must be at least 0 and prefetch={prefetch} at least 1")
        # Parallelism is over samples: OpenCV's own threads would only fight ours for the cores.
        cv2.setNumThreads(1)
        self._load, self._crop_size = SampleLoader(reader, transforms, seed=seed), transforms.crop_size
        self._order = SampleOrder(len(reader), seed)
        self._global_batch, self._slice = global_batch, slice_for(global_batch, rank=rank, world_size=world_size)
        self._next_step = first_step
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._ahead: deque[_Assembly] = deque()
        # Small batches need more of them in the making, or threads would find nothing to do.
        share = self._slice.stop - self._slice.start
        self._prefetch = max(prefetch, 1 + -(-2 * threads // share)) if threads else 1
        self._wait_s = 0.0
        self._fill()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DamagedShardError: a sample's bytes are not those that were written.
        """
        begin = time.perf_counter()
        self._fill()
        batch = self._ahead.popleft().finish()
        self._wait_s += time.perf_counter() - begin
        return batch

    def take_wait_s(self) -> float:
        """Seconds that the consumer waited for batches since the last call."""
        waited, self._wait_s = self._wait_s, 0.0
        return waited

    def close(self) -> None:
        """Drop what was decoded ahead and end the threads."""
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        while len(self._ahead) < self._prefetch:
            places = self._order.global_batch(self._next_step, self._global_batch)[self._slice]
            assembly = _Assembly(self._load, places, crop_size=self._crop_size, pool=self._pool)
            self._ahead.append(assembly)
            self._next_step += 1


class SampleLoader:
    """Loads a sample as the model sees it in one epoch. Safe to share between threads."""

    def __init__(self, reader: ShardReader, transforms: TransformConfig, *, seed: int) -> None:
        self._reader, self._seed = reader, seed
        self._transform = TrainTransform(transforms)

    def __call__(self, epoch: int, index: int) -> Sample:
        """The crop of sample `index`, before padding."""
        sample = self._reader[index]
        seed = (self._seed, epoch, index)
        image, label = self._transform(sample.image, sample.label, sample_seed=seed)
        return Sample(id=sample.id, image=image, label=label)


class _Assembly:
    """A batch in the making: every sample writes its own part of the arrays."""

    def __init__(
        self, load: SampleLoader, places: list[tuple[int, int]], *, crop_size: int, pool: ThreadPoolExecutor | None
    ) -> None:
        self._load, self._places = load, places
        self._images = np.zeros((len(places), 3, crop_size, crop_size), np.uint8)
        self._labels = np.full((len(places), crop_size, crop_size), IGNORE_INDEX, np.uint8)
        self._sizes = np.zeros((len(places), 2), np.int64)
        slots = range(len(places))
        self._futures: list[Future[str]] = [pool.submit(self._fill, slot) for slot in slots] if pool else []

    def finish(self) -> Batch:
        """The batch, once its last sample is there."""
        if self._futures:
            ids = tuple(future.result() for future in self._futures)
        else:
            ids = tuple(self._fill(slot) for slot in range(len(self._places)))
        return Batch(images=self._images, labels=self._labels, sizes=self._sizes, ids=ids)

    def _fill(self, slot: int) -> str:
        sample = self._load(*self._places[slot])
        height, width = sample.label.shape
        # Moving channels to the front is an OpenCV split: eight times as fast as a transposed copy.
        for plane, channel in zip(self._images[slot], cv2.split(sample.image), strict=True):
            plane[:height, :width] = channel
        self._labels[slot, :height, :width] = sample.label
        self._sizes[slot] = height, width
        return sample.id
