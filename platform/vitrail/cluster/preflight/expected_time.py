"""How long a run will take, from what is known of its speed: earlier runs on the cluster, or benchmark records.

All of it is what steps, validations and starts take. Waiting for machines, and what their loss costs, is not in it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vitrail.benchmark.model import ModelFigures
from vitrail.benchmark.record import BenchmarkRecord
from vitrail.cluster.preflight.earlier_runs import EarlierRun
from vitrail.cluster.preflight.facts import Answer
from vitrail.cluster.sweep_plan import START_S, run_seconds
from vitrail.config import Recipe, RunConfig
from vitrail.recipes import RECIPES
from vitrail.sweep.record import Cost
from vitrail.training.throughput import ThroughputCard


@dataclass(frozen=True)
class Expectation:
    """What a run is expected to take on its cluster."""

    seconds: float
    images_per_s: float
    """Of all workers."""
    source: str


def expect(
    run: RunConfig,
    recipe: Recipe,
    *,
    parameters: int,
    val_images: int,
    done_steps: int,
    earlier: Sequence[EarlierRun],
    records: Path,
    workers_on: Sequence[Answer],
) -> Expectation | None:
    """What `recipe` takes with the workers of `run`, by the best source there is; None where there is none.

    Args:
        earlier: the best first.
        records: folder of benchmark records.
        workers_on: the machines that will hold workers and could be asked.
    """
    if earlier:
        return by_earlier_run(earlier[0], recipe, workers=run.workers, done_steps=done_steps)
    for figures in _records(records):
        found = figures.cost(run, recipe, parameters, workers_on)
        if found is not None:
            cost, source = found
            seconds = run_seconds(recipe, cost, workers=run.workers, val_images=val_images, done_steps=done_steps)
            return Expectation(seconds, cost.train_images_per_s * run.workers, source)
    return None


def by_earlier_run(run: EarlierRun, recipe: Recipe, *, workers: int, done_steps: int = 0) -> Expectation:
    """At an earlier run's speed per worker, with validations as long as its own were."""
    card = ThroughputCard.model_validate(run.card)
    rate = card.images_per_s_per_worker * workers
    training_s = (recipe.total_steps - done_steps) * recipe.global_batch / rate
    per_training_s = card.validation_share / (1 - card.validation_share) if card.validation_share < 1 else 0.0
    validating_s = training_s * per_training_s * run.val_interval / min(recipe.val_interval, recipe.total_steps)
    device = f"{card.workers} x {card.device}"
    scaled = "" if card.workers == workers else f", taken in proportion for {workers}"
    return Expectation(START_S + training_s + validating_s, rate, f"run {run.name} on {device} ({run.where}){scaled}")


@dataclass(frozen=True)
class _Figures:
    """One model's figures of one benchmark record."""

    file: str
    record: BenchmarkRecord
    architecture: str
    figures: ModelFigures

    def cost(
        self, run: RunConfig, recipe: Recipe, parameters: int, workers_on: Sequence[Answer]
    ) -> tuple[Cost, str] | None:
        """What one worker of `run` does, if this is its model, its precision and its device."""
        precision = run.compute.precision + (", compiled" if run.compute.compile else "")
        ours = self.figures.ours.get(precision)
        measured = RECIPES.get(self.architecture)
        if ours is None or measured is None or not _same_model(measured, recipe):
            return None
        share = self._share_of_device(run, workers_on)
        train, predict = ours.best_train, ours.predict_images_per_s.get(1) or ours.best_predict
        if share is None or not train or not predict:
            return None
        cost = Cost(
            train_images_per_s=train * share,
            predict_images_per_s=predict * share,
            peak_memory_gib=ours.peak_memory_gib or 0.0,
            parameters=parameters,
            nominal_flops=self.figures.nominal_flops,
        )
        unit, each = ("GPU", run.gpus_per_worker) if run.gpus_per_worker else ("CPU", float(run.cpus_per_worker))
        part = "" if share == 1 else f", taken in proportion for {each:g} {unit}"
        return cost, f"benchmark {self.file} on {self.record.machine_name}{part}"

    def _share_of_device(self, run: RunConfig, workers_on: Sequence[Answer]) -> float | None:
        """A worker's part of what was measured; None if the workers' machines have something else, or are unknown."""
        machine = self.record.machine
        if not workers_on:
            return None
        if run.gpus_per_worker:
            same = all(set(each.gpus) == {machine.get("gpu")} for each in workers_on)
            return run.gpus_per_worker if same else None
        same = "gpu" not in machine and all(each.cpu == machine["cpu"] for each in workers_on)
        return run.cpus_per_worker / machine["cores"] if same else None


def _same_model(measured: Recipe, recipe: Recipe) -> bool:
    """Whether steps cost the same, but for the number of classes, which hardly counts."""
    same_crop = measured.transforms.crop_size == recipe.transforms.crop_size
    return same_crop and measured.with_classes(1).model == recipe.with_classes(1).model


def _records(folder: Path) -> Iterator[_Figures]:
    for path in sorted(folder.glob("*.json")):
        try:
            record = BenchmarkRecord.model_validate(json.loads(path.read_text()))
            if record.benchmark != "model":
                continue
            for name, figures in record.results["architectures"].items():
                yield _Figures(path.name, record, name, ModelFigures.model_validate(figures))
        except (ValueError, KeyError, ValidationError):  # of another version, or no record at all
            continue


def devices(answers: Iterable[Answer]) -> str:
    """What the machines that will hold workers have, in words."""
    return ", ".join(sorted({name for answer in answers for name in (answer.gpus or (answer.cpu,))}))
