"""The search for the largest micro-batch that fits."""

import pytest
import torch

from vitrail.training.micro_batch import largest_that_fits


@pytest.mark.parametrize(
    ("share", "room", "expected"),
    [(16, 99, 16), (16, 15, 8), (16, 3, 2), (6, 5, 3), (5, 4, 3), (5, 1, 1), (4, 0, None)],
)
def test_share_is_halved_until_it_fits(share: int, room: int, expected: int | None) -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > room:
            raise torch.OutOfMemoryError

    assert largest_that_fits(share, attempt) == expected
    assert tried == sorted(tried, reverse=True)


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    def attempt(size: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        largest_that_fits(4, attempt)
