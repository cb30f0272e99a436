"""Which samples the model sees at which step: a pure function of data set size, seed, step and global batch size.

Samples are walked in one endless sequence, epoch after epoch, each epoch in an order of its own. Number of workers,
threads and restarts have no part in it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import UsageError


class SampleOrder:
    """The order of `num_samples` samples under `seed`."""

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise UsageError("the training split has no samples")
        self.num_samples, self.seed = num_samples, seed
        # A global batch spans two epochs at their seam, more only in tiny data sets.
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def global_batch(self, step: int, global_batch: int) -> list[tuple[int, int]]:
        """(epoch, index) of each sample of `step`, counted from 0; costs a permutation per epoch, at any step."""
        first = step * global_batch
        places = (divmod(first + k, self.num_samples) for k in range(global_batch))
        return [(epoch, int(self._permutation(epoch)[place])) for epoch, place in places]

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.num_samples)


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What one worker is to see: its part of each global batch from `first_step` on.

    Raises:
        UsageError: there are more workers than samples in a global batch.
    """

    seed: int
    global_batch: int
    rank: int = 0
    world_size: int = 1
    first_step: int = 0

    def __post_init__(self) -> None:
        assert self._slice

    @property
    def _slice(self) -> slice:
        return slice_for(self.global_batch, rank=self.rank, world_size=self.world_size)

    @property
    def share(self) -> int:
        """Samples of this worker in a global batch."""
        return len(range(self.global_batch)[self._slice])

    def places(self, order: SampleOrder, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of each of this worker's samples of `step`."""
        return order.global_batch(step, self.global_batch)[self._slice]


def slice_for(global_batch: int, *, rank: int, world_size: int) -> slice:
    """The part of a global batch that `rank` works on: contiguous, and as long as the others' to within one.

    Raises:
        UsageError: there are more ranks than samples.
    """
    if global_batch < world_size:
        raise UsageError(f"global_batch={global_batch} is not enough for {world_size} workers; use at most that many")
    return slice(rank * global_batch // world_size, (rank + 1) * global_batch // world_size)
