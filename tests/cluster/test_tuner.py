"""What a sweep would run, without running it."""

import pytest

from vitrail.cluster.tuner import SearchSpace
from vitrail.config import CosineSchedule, PolySchedule
from vitrail.errors import UnknownNameError, UsageError
from vitrail.recipes import get_recipe

BASE = get_recipe("upernet_vit-nano_mln_128x128_1k")


def test_grid_is_every_combination_applied_to_the_base() -> None:
    space = SearchSpace(necks=("none", "ln_mln"), schedules=("poly", "cosine"), peak_lrs=(1e-3, 2e-3), seeds=(0, 1))
    trials = space.trials(BASE)
    assert len({trial.name for trial in trials}) == len(trials) == 16
    (trial,) = (trial for trial in trials if trial.name == "ln_mln-cosine-lr0.002-seed1")
    assert isinstance(trial.recipe.schedule, CosineSchedule)
    assert trial.recipe.schedule.peak_lr == 2e-3
    assert trial.recipe.schedule.warmup_steps == BASE.schedule.warmup_steps
    assert trial.recipe.model.backbone.final_norm
    assert trial.seed == 1


def test_without_rates_the_base_keeps_its_own() -> None:
    (trial,) = SearchSpace(necks=("none",), schedules=("poly",)).trials(BASE)
    assert trial.recipe.schedule == BASE.schedule
    assert isinstance(trial.recipe.schedule, PolySchedule)
    assert trial.recipe.model.neck is None


def test_empty_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        SearchSpace(necks=()).trials(BASE)


def test_unknown_neck_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mln'"):
        SearchSpace(necks=("mlnn",)).trials(BASE)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="schedule"):
        SearchSpace(schedules=("polly",)).trials(BASE)
