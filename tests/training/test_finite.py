"""Finding steps whose gradient is not finite."""

import pickle

import torch

from vitrail.training.finite import FiniteCheck, NonFiniteError


def test_only_steps_that_are_not_finite_are_named_and_counted_once() -> None:
    check = FiniteCheck(skipped=2)
    for step, norm in enumerate((1.0, float("nan"), 2.0, float("inf"))):
        check.add(step, torch.tensor(norm), [f"image-{step}"])
    assert [(bad.step, bad.ids) for bad in check.read()] == [(1, ("image-1",)), (3, ("image-3",))]
    assert check.skipped == 4
    assert check.read() == []


def test_error_names_samples_and_survives_ray() -> None:
    error = NonFiniteError(7, tuple(f"image-{i}" for i in range(40)), 1, 0)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert "step 7" in str(error) and "image-0, image-1" in str(error) and "and 8 more" in str(error)
