"""What a sweep would run, and where, without running it."""

from pathlib import Path
from typing import Any

import pytest

from vitrail.cluster.sweep_plan import SweepConfig, SweepExistsError, forecast, known_recipes, trials_that_fit
from vitrail.config import RunConfig
from vitrail.errors import UsageError
from vitrail.recipes import get_recipe
from vitrail.sweep.record import Cost
from vitrail.sweep.space import SearchSpace

NANO = "upernet_vit-nano_128x128_1k"
COST = Cost(train_images_per_s=40, predict_images_per_s=10, peak_memory_gib=1, parameters=1_000_000, nominal_flops=1e9)


def config(root: Path, data: Path | str = "data", **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {"recipe": NANO, "vary": {"neck": ["none", "mln"], "lr": [1e-3, 2e-3, 4e-3]}}
    space = SearchSpace.checked(**values | changes)
    template = RunConfig(
        name="template",
        recipe=space.base.with_classes(7),
        data=str(data),
        data_fingerprint="f",
        folder=str(root / "sweep" / "template"),
    )
    return SweepConfig(name="sweep", space=space, template=template, concurrent=2)


def test_trial_is_the_template_with_its_choices_in_a_folder_of_its_own(tmp_path: Path) -> None:
    run = config(tmp_path).trial({"neck": "mln", "lr": 0.002}, seed=3)
    assert (run.name, run.seed, run.folder) == ("mln-lr0.002-seed3", 3, str(tmp_path / "sweep" / "mln-lr0.002-seed3"))
    assert run.recipe.schedule.peak_lr == 0.002
    assert run.recipe.model.neck is not None
    assert run.recipe.model.num_classes == 7
    assert run.recipe.transforms == get_recipe(NANO).transforms


def test_trials_keep_their_checkpoints_apart_in_a_store(tmp_path: Path) -> None:
    plan = config(tmp_path)
    template = plan.template.model_copy(update={"checkpoint_root": "s3://bucket/all/template"})
    plan = plan.model_copy(update={"template": template})
    places = {plan.trial({"neck": "mln"}, seed).checkpoints for seed in (0, 1)}
    assert places == {"s3://bucket/all/mln-seed0", "s3://bucket/all/mln-seed1"}


@pytest.mark.parametrize(
    ("cluster", "workers", "gpus", "fit"),
    [
        ([{"CPU": 8}], 1, 0, 8),
        ([{"CPU": 8}], 3, 0, 2),
        ([{"CPU": 4}, {"CPU": 64, "GPU": 8}], 2, 1, 4),
        ([{"CPU": 64, "GPU": 3}, {"CPU": 64, "GPU": 3}], 2, 2, 1),  # a GPU of each machine is left over
        ([{"CPU": 2, "GPU": 8}], 1, 1, 2),  # each worker needs a CPU too
        ([{"CPU": 8, "GPU": 1}], 1, 0.5, 2),
    ],
)
def test_as_many_trials_as_have_room_for_all_their_workers(
    cluster: list[dict[str, float]], workers: int, gpus: float, fit: int
) -> None:
    assert trials_that_fit(cluster, workers=workers, gpus_per_worker=gpus) == fit


def test_trial_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="3 workers does not fit"):
        trials_that_fit([{"CPU": 8, "GPU": 2}], workers=3, gpus_per_worker=1)


def test_forecast_adds_up_trials_hours_and_disk(tmp_path: Path, tiny_data: Path) -> None:
    plan = config(tmp_path, tiny_data, seeds=2)
    found = forecast(plan, dict.fromkeys(known_recipes(plan), COST))
    assert (found.trials, found.confirmations, found.concurrent, found.gpu_hours) == (12, 0, 2, 0)
    # 1000 steps of 16 at 40 images/s, 5 validations of 5 images at 10, and a minute beside.
    assert found.seconds == pytest.approx(6 * (16_000 / 40 + 25 / 10 + 60))
    # Two newest and the best of each trial: weights and two moments of a million float32.
    assert found.disk_bytes == 12 * 3 * 12_000_000


def test_forecast_of_a_search_counts_the_repetition_of_the_best(tmp_path: Path, tiny_data: Path) -> None:
    plan = config(tmp_path, tiny_data, seeds=3, scheduler="asha", confirm=2)
    found = forecast(plan, dict.fromkeys(known_recipes(plan), COST))
    assert (found.trials, found.confirmations) == (6 + 4, 4)
    assert any(line.startswith("at most") for line in found.lines())


def test_optuna_forecast_goes_by_the_recipe(tmp_path: Path, tiny_data: Path) -> None:
    plan = config(tmp_path, tiny_data, search="optuna", samples=7)
    assert list(known_recipes(plan).values()) == [plan.template.recipe]
    assert forecast(plan, {"": COST}).trials == 7


def test_folder_of_a_sweep_is_not_taken_twice(tmp_path: Path) -> None:
    plan = config(tmp_path)
    plan.save()
    assert SweepConfig.load(plan.folder) == plan
    with pytest.raises(SweepExistsError, match="--resume sweep"):
        plan.save()
    with pytest.raises(UsageError, match="holds no sweep"):
        SweepConfig.load(tmp_path / "other")
