"""The sample order: every sample once per epoch, any step at once, ranks that share a batch without gap."""

from itertools import chain

import pytest

from vitrail.data.order import SampleOrder, slice_for
from vitrail.errors import UsageError


def test_each_epoch_sees_every_sample_once_in_its_own_order() -> None:
    order = SampleOrder(10, seed=4)
    seen = [place for step in range(15) for place in order.global_batch(step, 4)]
    assert [epoch for epoch, _ in seen] == [k // 10 for k in range(60)]
    epochs = [tuple(index for epoch, index in seen if epoch == number) for number in range(6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 6


def test_any_step_is_reached_without_those_before() -> None:
    walked = SampleOrder(7, seed=1)
    batches = [walked.global_batch(step, 3) for step in range(1000)]
    assert SampleOrder(7, seed=1).global_batch(999, 3) == batches[999]
    assert SampleOrder(7, seed=2).global_batch(999, 3) != batches[999]


def test_batch_may_be_larger_than_the_data_set() -> None:
    places = SampleOrder(3, seed=0).global_batch(1, 8)
    assert [epoch for epoch, _ in places] == [2, 3, 3, 3, 4, 4, 4, 5]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 7, 12])
def test_slices_of_all_ranks_make_up_the_batch(world_size: int) -> None:
    batch = list(range(12))
    parts = [batch[slice_for(12, rank=rank, world_size=world_size)] for rank in range(world_size)]
    assert list(chain.from_iterable(parts)) == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_workers_than_samples_of_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="global_batch=2 is not enough for 4 workers"):
        slice_for(2, rank=0, world_size=4)


def test_empty_split_is_refused() -> None:
    with pytest.raises(UsageError, match="no samples"):
        SampleOrder(0, seed=0)
