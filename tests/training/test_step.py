"""The pieces of one training step that do not need a cluster."""

import pytest
import torch

from vitrail.config import override
from vitrail.recipes import get_recipe
from vitrail.training.meter import Meter
from vitrail.training.step import seed_step, validation_steps

NANO = get_recipe("upernet_vit-nano_128x128_1k")


def draw(seed: int, step: int, rank: int) -> float:
    seed_step(seed, step, rank)
    return float(torch.rand(()))


def test_random_numbers_depend_on_seed_step_and_rank_alone() -> None:
    first = draw(3, 100, 1)
    torch.rand(7)
    assert draw(3, 100, 1) == first
    assert len({first, draw(4, 100, 1), draw(3, 101, 1), draw(3, 100, 0)}) == 4


def test_large_seeds_are_accepted() -> None:
    assert 0 <= draw(2**62, 159_999, 4095) < 1


def test_last_step_is_always_validated() -> None:
    assert validation_steps(override(NANO, ["total_steps=500", "val_interval=200"])) == {200, 400, 500}
    assert validation_steps(override(NANO, ["total_steps=400", "val_interval=200"])) == {200, 400}
    assert validation_steps(override(NANO, ["total_steps=60", "val_interval=200"])) == {60}


def test_meter_averages_since_the_last_reading() -> None:
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add({"loss": torch.tensor(value)}, images=4, wait_s=0.0)
    assert meter.read()["loss"] == 2.0
    meter.add({"loss": torch.tensor(5.0)}, images=4, wait_s=0.0)
    reading = meter.read()
    assert reading["loss"] == 5.0
    assert reading["data_wait_share"] == 0.0
    assert reading["images_per_s"] > 0


def test_meter_without_steps_says_so() -> None:
    with pytest.raises(ValueError, match="no step"):
        Meter().read()
