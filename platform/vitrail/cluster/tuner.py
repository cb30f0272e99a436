"""A sweep: Ray Tune trials, each a data-parallel Ray Train run of its own, under one parent run in MLflow."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console
from rich.table import Table

from vitrail.cluster.launch import plan_run
from vitrail.cluster.trainer import finished_result, read_result, train
from vitrail.config import Recipe, RunConfig, Strict, override
from vitrail.data.storage import Place
from vitrail.errors import UsageError, VitrailError
from vitrail.recipes import with_neck
from vitrail.tracking.tracker import start_run

# A trial's driver only waits for its workers: a sliver of the head's own resource takes no CPU from them.
_DRIVER = {"CPU": 0, "node:__internal_head__": 0.001}


class SearchSpace(Strict):
    """What a grid sweep varies; every combination is one trial."""

    necks: tuple[str, ...] = ("none", "mln", "ln_mln")
    schedules: tuple[str, ...] = ("poly", "cosine")
    peak_lrs: tuple[float, ...] = ()
    """Empty: the recipe's own."""
    seeds: tuple[int, ...] = (0,)

    def trials(self, base: Recipe) -> list["Trial"]:
        """Every combination applied to `base`.

        Raises:
            UsageError: a neck, schedule or rate that does not exist, or nothing to vary.
        """
        rates = self.peak_lrs or (base.schedule.peak_lr,)
        combinations = list(itertools.product(self.necks, self.schedules, rates, self.seeds))
        if not combinations:
            raise UsageError("the search space is empty: give at least one neck, schedule and seed")
        return [Trial.build(base, *combination) for combination in combinations]


class Trial(Strict):
    """One combination of a sweep."""

    name: str
    neck: str
    schedule: str
    peak_lr: float
    seed: int
    recipe: Recipe

    @classmethod
    def build(cls, base: Recipe, neck: str, schedule: str, peak_lr: float, seed: int) -> "Trial":
        """`base` with the combination applied."""
        recipe = base.model_copy(update={"model": with_neck(base.model, neck)})
        recipe = override(recipe, [f"schedule.kind={schedule}", f"schedule.peak_lr={peak_lr}"])
        name = f"{neck}-{schedule}-lr{peak_lr:g}-seed{seed}"
        return cls(name=name, neck=neck, schedule=schedule, peak_lr=peak_lr, seed=seed, recipe=recipe)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: its best mIoU and checkpoint, or the reason of its failure."""

    trial: Trial
    miou: float | None
    step: int | None
    checkpoint: Path | None
    error: str | None = None


@dataclass(frozen=True)
class SweepResult:
    """All trials, best first, failed ones last."""

    trials: tuple[TrialResult, ...]

    @property
    def best(self) -> TrialResult:
        """The trial of the highest mIoU."""
        if self.trials[0].miou is None:
            raise VitrailError(f"every trial failed; the first because: {self.trials[0].error}")
        return self.trials[0]


def sweep(
    base: Recipe,
    space: SearchSpace,
    data: Place,
    *,
    root: Path,
    name: str,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    tracking_uri: str | None = None,
    experiment: str = "vitrail",
) -> SweepResult:
    """Run every trial of `space`, as many at a time as the cluster holds; Ray must be started."""
    trials = space.trials(base)
    folder = root / name
    concurrent = max_concurrent_trials(workers, gpus_per_worker)
    parent_key = f"sweep-{folder.resolve()}"
    configs = {
        trial.name: plan_run(
            trial.recipe,
            data,
            root=folder,
            name=trial.name,
            seed=trial.seed,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            tracking_uri=tracking_uri,
            experiment=experiment,
            parent_run_key=parent_key,
        ).model_copy(update={"cpus_per_worker": 1})
        for trial in trials
    }
    first = next(iter(configs.values()))
    assert first.tracking is not None
    parent = start_run(
        tracking_uri=first.tracking.uri,
        experiment=experiment,
        run_name=name,
        run_key=parent_key,
        params={"recipe": base.name, "trials": len(trials), **space.model_dump(mode="json")},
        tags={"vitrail.kind": "sweep"},
        folder=folder / "outbox",
    )
    unfinished = [config for config in configs.values() if finished_result(config) is None]
    errors = _run_trials(unfinished, folder, concurrent=concurrent) if unfinished else {}
    result = _collect(trials, configs, errors)
    _summarise(parent, result)
    parent.finish("FINISHED")
    return result


def print_trials(result: SweepResult) -> None:
    """Print a line per trial, best first."""
    table = Table("trial", "mIoU", "at step", "error")
    for row in result.trials:
        score = "failed" if row.miou is None else f"{row.miou:.2%}"
        table.add_row(row.trial.name, score, str(row.step or ""), row.error or "")
    Console().print(table)


def max_concurrent_trials(workers: int, gpus_per_worker: float) -> int:
    """How many trials the cluster holds at once with all their workers, so that none waits half-placed for another."""
    total = ray.cluster_resources()
    by_cpu = int(total.get("CPU", 0)) // workers
    by_gpu = int(total.get("GPU", 0) // (workers * gpus_per_worker)) if gpus_per_worker else by_cpu
    count = min(by_cpu, by_gpu)
    if count < 1:
        raise UsageError(f"a trial of {workers} workers does not fit on this cluster; ask for fewer workers")
    return count


def _run_trials(configs: list[RunConfig], folder: Path, *, concurrent: int) -> dict[str, str]:
    """Run the trials with Ray Tune and return the errors of those that failed, by name."""
    tuner = tune.Tuner(
        tune.with_resources(_run_trial, tune.PlacementGroupFactory([_DRIVER])),
        param_space={"config": tune.grid_search([config.model_dump(mode="json") for config in configs])},
        tune_config=tune.TuneConfig(metric="mIoU", mode="max", max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder.resolve()), verbose=0),
    )
    grid = tuner.fit()
    return {r.config["config"]["name"]: str(r.error) for r in grid if r.error is not None}


def _run_trial(params: dict[str, Any]) -> None:
    """One trial's driver: its run has a fixed folder, so a trial that is started again continues."""
    config = RunConfig.model_validate(params["config"])
    train(config, resume=True, show=False, callbacks=[TuneReportCallback()])


def _collect(trials: list[Trial], configs: dict[str, RunConfig], errors: dict[str, str]) -> SweepResult:
    results = []
    for trial in trials:
        if trial.name in errors:
            results.append(TrialResult(trial, None, None, None, error=errors[trial.name].strip().splitlines()[-1]))
            continue
        best = read_result(configs[trial.name])
        results.append(TrialResult(trial, best.best_miou, best.best_info.step, best.best))
    results.sort(key=lambda result: -1.0 if result.miou is None else result.miou, reverse=True)
    return SweepResult(tuple(results))


def _summarise(parent: Any, result: SweepResult) -> None:
    rows = result.trials
    parent.log_table(
        {
            "trial": [row.trial.name for row in rows],
            "neck": [row.trial.neck for row in rows],
            "schedule": [row.trial.schedule for row in rows],
            "peak_lr": [row.trial.peak_lr for row in rows],
            "seed": [row.trial.seed for row in rows],
            "mIoU": [row.miou for row in rows],
            "step": [row.step for row in rows],
            "error": [row.error for row in rows],
        },
        "tables/trials.json",
    )
    if rows[0].miou is not None:
        parent.log_metrics({"best/val_mIoU": rows[0].miou}, step=0)
        parent.set_tags({"vitrail.best_trial": rows[0].trial.name})
