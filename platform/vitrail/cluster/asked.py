"""What a command line of `jobs/train.py` or `jobs/tune.py` asks for, checked as far as it can be without a cluster.

The scripts and `vitrail submit --dry-run` make their plans from these, so that the one says what the other would do.
Fields are called as the scripts' parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vitrail.config import ComputeConfig, IngestChoice, Precision, Recipe, RunConfig
from vitrail.errors import UsageError
from vitrail.overrides import choose_compute, override
from vitrail.recipes import get_recipe
from vitrail.sweep.space import SearchSpace, parse_vary

if TYPE_CHECKING:
    from vitrail.cluster.sweep_plan import SweepConfig


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a run and a sweep have in common."""

    data: str
    root: Path
    workers: int
    gpus_per_worker: float
    precision: Precision
    micro_batch: str | None
    compile_: bool
    checkpoint_activations: bool
    set_: list[str] | None
    experiment: str
    tracking_uri: str | None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """From a script's parameters by name, of which there may be more."""
        chosen = {field.name: parameters[field.name] for field in fields(cls)}
        return cls(**{**chosen, "root": Path(chosen["root"])})

    @cached_property
    def compute(self) -> ComputeConfig:
        """How steps are to be computed."""
        return choose_compute(
            self.precision,
            gpus=self.gpus_per_worker > 0,
            compile=self.compile_,
            checkpoint_activations=self.checkpoint_activations,
            micro_batch=self.micro_batch,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingAsked(_Asked):
    """A training run.

    Raises:
        UsageError: there is no such recipe, or it cannot be changed so.
    """

    recipe: str
    name: str | None
    min_workers: int | None
    seed: int
    steps: int | None
    global_batch: int | None
    pretrained: str | None
    checkpoints: str | None
    save_interval: float
    max_failures: int
    skip_non_finite: int
    validate_beside: bool
    ingest: IngestChoice

    def __post_init__(self) -> None:
        _ = self.changed_recipe, self.compute

    @cached_property
    def changed_recipe(self) -> Recipe:
        """The recipe with what is to be changed of it."""
        changes = [f"total_steps={self.steps}"] if self.steps else []
        changes += [f"global_batch={self.global_batch}"] if self.global_batch else []
        changes += [f"pretrained={'null' if self.pretrained == 'none' else self.pretrained}"] if self.pretrained else []
        return override(get_recipe(self.recipe), [*changes, *(self.set_ or [])])

    @property
    def base(self) -> Recipe | None:
        """The same, as for a sweep."""
        return self.changed_recipe

    def plan(self) -> RunConfig:
        """The run, as `plan_run`; Ray must be started."""
        from vitrail.cluster.launch import plan_run

        return plan_run(
            self.changed_recipe,
            self.data,
            root=self.root,
            name=self.name,
            seed=self.seed,
            workers=self.workers,
            gpus_per_worker=self.gpus_per_worker,
            min_workers=self.min_workers,
            compute=self.compute,
            checkpoint_root=self.checkpoints,
            save_interval_s=self.save_interval,
            max_skipped_steps=self.skip_non_finite,
            max_failures=self.max_failures,
            validate_beside=self.validate_beside,
            ingest=self.ingest,
            tracking_uri=self.tracking_uri,
            experiment=self.experiment,
        )


@dataclass(frozen=True, kw_only=True)
class SweepAsked(_Asked):
    """A sweep, or, with `resume`, one to go on with.

    Raises:
        UsageError: the search space is wrong or missing, or is given for a sweep that has its own.
    """

    space: str | None
    vary: list[str] | None
    seeds: int | None
    search: str | None
    samples: int | None
    scheduler: str | None
    rule: str | None
    name: str
    concurrent: int | None
    checkpoints: str | None
    resume: str | None

    def __post_init__(self) -> None:
        if self.resume is not None and (self.space or self.data or self.vary or self.set_ or self.checkpoints):
            raise UsageError("--resume takes space, data and checkpoints from the sweep's folder; leave them out")
        if self.resume is None and not (self.space and self.data):
            raise UsageError("give a search space or recipe and --data, or --resume with a sweep's name")
        _ = self.search_space, self.compute

    @cached_property
    def search_space(self) -> SearchSpace | None:
        """What is to be varied; None for a sweep to go on with."""
        if self.space is None:
            return None
        return SearchSpace.named(
            self.space,
            vary=parse_vary(self.vary) if self.vary else None,
            set=self.set_ or None,
            seeds=self.seeds,
            search=self.search,
            samples=self.samples,
            scheduler=self.scheduler,
            rule=self.rule,
        )

    @property
    def base(self) -> Recipe | None:
        """The recipe that is varied; None for a sweep to go on with."""
        return self.search_space.base if self.search_space else None

    def plan(self) -> "SweepConfig":
        """The new sweep, as `plan_sweep`; Ray must be started."""
        from vitrail.cluster.sweep_plan import plan_sweep

        assert self.search_space is not None
        return plan_sweep(
            self.search_space,
            self.data,
            root=self.root,
            name=self.name,
            workers=self.workers,
            gpus_per_worker=self.gpus_per_worker,
            concurrent=self.concurrent,
            compute=self.compute,
            checkpoint_root=self.checkpoints,
            experiment=self.experiment,
            tracking_uri=self.tracking_uri,
        )


def asked_by(parameters: Mapping[str, Any]) -> TrainingAsked | SweepAsked | None:
    """What a script with these parameters by name is asked for; None if they are those of neither."""
    for kind in (TrainingAsked, SweepAsked):
        if {field.name for field in fields(kind)} <= parameters.keys():
            return kind.of(parameters)
    return None
