"""Searches that learn from their trials, and what follows from a sweep."""

import json
from pathlib import Path

import pytest
from test_survival import TINY
from test_sweep_plan import COST, config

from vitrail.cluster.capacity import CLUSTER_VARIABLE
from vitrail.cluster.sweep_outcome import full_length
from vitrail.cluster.sweep_plan import plan_sweep
from vitrail.cluster.tuner import best_configurations, sweep
from vitrail.sweep.decision import Decision
from vitrail.sweep.record import Score, SweepRecord, Trial, label
from vitrail.sweep.space import SearchSpace

NANO = "upernet_vit-nano_128x128_1k"


@pytest.mark.nightly
@pytest.mark.long
def test_optuna_proposes_and_its_best_is_confirmed_with_another_seed(
    ray_session: None, tiny_data: Path, tmp_path: Path
) -> None:
    space = SearchSpace.checked(
        recipe=NANO,
        set=[*TINY, "total_steps=20", "val_interval=20"],
        vary={"lr": {"low": 1e-6, "high": 1e-2, "log": True}, "neck": ["none", "mln"]},
        search="optuna",
        samples=3,
        seeds=2,
        confirm=1,
    )
    plan = plan_sweep(space, tiny_data, root=tmp_path, name="sweep")
    plan.save()
    record = sweep(plan, show=False)
    assert [trial.status for trial in record.trials] == ["finished"] * 4
    searched, (confirmed,) = record.trials[:3], record.trials[3:]
    assert {trial.seed for trial in searched} == {0}
    assert len({trial.label for trial in searched}) == 3
    assert all(1e-6 <= float(trial.configuration["lr"]) <= 1e-2 for trial in searched)
    best = max(searched, key=lambda trial: trial.best.miou if trial.best else 0.0)
    assert (confirmed.label, confirmed.seed) == (best.label, 1)
    assert set(record.costs) == {trial.label for trial in searched}


@pytest.mark.slow
def test_trials_go_by_what_the_sweeps_driver_knows_of_machines_that_may_be_started(
    ray_session: None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SearchSpace.checked(recipe=NANO, set=list(TINY), vary={"neck": ["mln"]})
    plan = plan_sweep(space, tiny_data, root=tmp_path, name="sweep", workers=2)
    plan.save()
    # Of less than is alive, so that a trial which goes by that, or by its own environment, would train.
    nodes = {"head": {"resources": {"CPU": 0}}, "little": {"resources": {"CPU": 1}, "max_workers": 1}}
    launcher = tmp_path / "cluster.yaml"
    launcher.write_text(json.dumps({"head_node_type": "head", "available_node_types": nodes}))
    monkeypatch.setenv(CLUSTER_VARIABLE, str(launcher))
    record = sweep(plan, costs={label({"neck": "mln"}): COST}, show=False)
    (refused,) = record.trials
    assert refused.status == "failed"
    assert "2 workers" in (refused.error or "")
    assert "do not fit on this cluster, which has 1 CPUs and 0 GPUs" in (refused.error or "")


def trial(neck: str, miou: float, **changes: object) -> Trial:
    values = {"name": neck, "configuration": {"neck": neck}, "seed": 0, "total_steps": 2, "status": "finished"}
    return Trial.model_validate({**values, "scores": [Score(step=2, miou=miou)], **changes})


def test_best_that_finished_with_the_first_seed_are_confirmed() -> None:
    record = SweepRecord(
        name="sweep",
        recipe=NANO,
        data="data",
        val_images=5,
        device="CPU",
        workers=1,
        search="grid",
        scheduler="asha",
        rule="score",
        dimensions={},
        costs={},
        trials=(
            trial("a", 0.1),
            trial("b", 0.3),
            trial("c", 0.2),
            trial("stopped", 0.9, status="stopped"),
            trial("failed", 0.9, status="failed"),
            trial("other seed", 0.9, seed=1),
        ),
    )
    assert best_configurations(record, 2) == [{"neck": "b"}, {"neck": "c"}]


def test_winner_is_trained_at_the_full_length_of_the_recipe(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    plan = plan_sweep(config(tmp_path, tiny_data).space, tiny_data, root=tmp_path, name="sweep")
    chosen = trial("mln", 0.3, configuration={"neck": "mln", "lr": 0.002, "steps": 40})
    decision = Decision(winner="mln", trial=chosen, reason="", within_noise=(), noise_known=False)
    run = full_length(plan, decision, "upernet_deit-s16_512x512_80k_ade20k")
    assert run.recipe.total_steps == 80_000
    assert run.recipe.model.neck is not None
    assert run.recipe.schedule.peak_lr == 0.002
    assert run.recipe.model.backbone.embed_dim == 384
    assert (run.name, Path(run.folder)) == ("sweep-winner", tmp_path / "sweep-winner")
