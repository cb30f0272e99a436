"""What a sweep is to run and where, before it runs: its trials' runs, how many at a time, hours and disk space."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.cluster.capacity import worker_places
from vitrail.cluster.launch import plan_run
from vitrail.cluster.runtime import machines
from vitrail.config import ComputeConfig, Recipe, RunConfig
from vitrail.data.files import write_aside
from vitrail.data.manifest import Manifest
from vitrail.data.storage import Folder, Place
from vitrail.errors import UsageError
from vitrail.strict import Strict
from vitrail.sweep.record import Configuration, Cost, SweepRecord, Trial, Value, label
from vitrail.sweep.space import SearchSpace, apply, trial_name
from vitrail.tracking.store import default_tracking_uri
from vitrail.training.step import validation_steps
from vitrail.words import duration, plural

SWEEP_FILE = "sweep.json"
RECORD_FILE = "record.json"
START_S = 60.0
"""What a trial needs beside its steps, roughly: processes that start and import torch, saving, the end in MLflow."""
_STATE_COPIES = 3
"""Tensors as large as the parameters in a checkpoint: the weights and AdamW's two moments, float32."""


class SweepExistsError(UsageError):
    """A folder that holds a sweep already."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        name = Path(self.folder).name
        return f"{self.folder} already holds a sweep; go on with it by --resume {name}, or choose another --name"


class SweepConfig(Strict):
    """One sweep: its search space and the run that every trial is a variation of."""

    name: str
    space: SearchSpace
    template: RunConfig
    concurrent: int
    """Trials at a time."""

    @property
    def folder(self) -> Path:
        """Of the sweep, and of its trials' folders."""
        return Path(self.template.folder).parent

    def trial(self, configuration: Mapping[str, Value], seed: int) -> RunConfig:
        """The run that trains a configuration with a seed."""
        template, name = self.template, trial_name(configuration, seed)
        place = template.checkpoint_root and Folder(template.checkpoint_root).sibling(name).uri
        return template.model_copy(
            update={
                "name": name,
                "recipe": apply(template.recipe, configuration),
                "seed": seed,
                "folder": str(self.folder / name),
                "checkpoint_root": place,
            }
        )

    def waiting(self, configuration: Configuration, seed: int) -> Trial:
        """The trial's entry in the record before it starts."""
        run = self.trial(configuration, seed)
        return Trial(name=run.name, configuration=configuration, seed=seed, total_steps=run.recipe.total_steps)

    def check_new(self) -> None:
        """Raise `SweepExistsError` if the folder holds a sweep."""
        if self.is_in(self.folder):
            raise SweepExistsError(str(self.folder))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a sweep has begun in a folder."""
        return (folder / SWEEP_FILE).is_file()

    def save(self) -> None:
        """Take the folder for this sweep.

        Raises:
            SweepExistsError: it holds one.
            UsageError: it cannot be written to.
        """
        self.check_new()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_aside(self.folder / SWEEP_FILE, self.model_dump_json(indent=1).encode())
        except OSError as error:
            raise UsageError(f"cannot write the sweep's folder {self.folder}: {error.strerror}") from error

    @classmethod
    def load(cls, folder: Path) -> "SweepConfig":
        """The sweep in a folder.

        Raises:
            UsageError: it holds none.
        """
        path = folder / SWEEP_FILE
        if not path.is_file():
            raise UsageError(f"{folder} holds no sweep to go on with: it has no {SWEEP_FILE}")
        return cls.model_validate_json(path.read_text())


def plan_sweep(
    space: SearchSpace,
    data: Place,
    *,
    root: Path,
    name: str,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    concurrent: int | None = None,
    compute: ComputeConfig | None = None,
    checkpoint_root: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "vitrail",
) -> SweepConfig:
    """The sweep of `space` on the data set at `data`, below `root`; Ray must be started.

    Args:
        concurrent: trials at a time; None: as many as the cluster has room for with all their workers.
        checkpoint_root: folder or URI below which trials keep checkpoints, by sweep and trial; None: in their folders.
        tracking_uri: of MLflow; None: the local store of `root`.

    Raises:
        UsageError: a trial has no room on the cluster, or the data set cannot be trained on.
    """
    room = trials_that_fit(machines(), workers=workers, gpus_per_worker=gpus_per_worker)
    if concurrent is not None and concurrent > room:
        raise UsageError(f"{concurrent} trials at a time do not fit: the cluster has room for {room}")
    concurrent = concurrent or room
    folder = (root / name).resolve()
    template = plan_run(
        space.base,
        data,
        root=folder,
        name="template",
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        compute=compute,
        checkpoint_root=Folder.at(checkpoint_root).child(name).uri if checkpoint_root else None,
        cluster_share=1 / concurrent,
        tracking_uri=tracking_uri or default_tracking_uri(root),
        experiment=experiment,
        parent_run_key=f"sweep-{folder}",
    )
    return SweepConfig(name=name, space=space, template=template, concurrent=concurrent)


def trials_that_fit(cluster: Sequence[Mapping[str, float]], *, workers: int, gpus_per_worker: float) -> int:
    """How many trials machines with these resources hold at once with all their workers, so that none waits half-placed
    for another.

    Raises:
        UsageError: none.
    """
    places = worker_places(cluster, gpus_per_worker=gpus_per_worker)
    if places < workers:
        raise UsageError(f"a trial of {workers} workers does not fit on this cluster; ask for fewer workers")
    return places // workers


@dataclass(frozen=True)
class Forecast:
    """What a sweep is expected to take."""

    trials: int
    confirmations: int
    """Of those, trials that repeat the best configurations with other seeds."""
    concurrent: int
    seconds: float
    """From start to end."""
    gpu_hours: float
    disk_bytes: int
    """Of checkpoints, once all trials are over."""
    ends_early: bool
    """Whether poor trials are ended early, so that hours are what it takes at most."""

    def lines(self) -> list[str]:
        """For a person to read."""
        repeats = f", of which {self.confirmations} repeat the best with other seeds" if self.confirmations else ""
        most = "at most " if self.ends_early else "about "
        gpus = f", {self.gpu_hours:.1f} GPU-hours" if self.gpu_hours else ""
        return [
            f"{self.trials} trials{repeats}; {self.concurrent} at a time",
            f"{most}{duration(self.seconds)}{gpus}",
            f"{self.disk_bytes / 1e9:.1f} GB of checkpoints are kept",
        ]


def new_record(config: SweepConfig) -> SweepRecord:
    """The record of a sweep that has not begun."""
    space, manifest = config.space, Manifest.load(config.template.data)
    return SweepRecord(
        name=config.name,
        recipe=space.recipe,
        data=manifest.name,
        val_images=manifest.split("validation").num_samples,
        device=_machine(config.template),
        workers=config.template.workers,
        search=space.search,
        scheduler=space.scheduler,
        rule=space.rule,
        dimensions={name: values if isinstance(values, tuple) else () for name, values in space.vary.items()},
        trials=(),
        costs={},
    )


def known_recipes(config: SweepConfig) -> dict[str, Recipe]:
    """What will be trained, by the configuration's label; for what Optuna is yet to propose, the recipe itself."""
    if config.space.search == "optuna":
        return {"": config.template.recipe}
    return {label(chosen): apply(config.template.recipe, chosen) for chosen in config.space.configurations()}


def forecast(config: SweepConfig, costs: Mapping[str, Cost]) -> Forecast:
    """From the measured costs of `known_recipes`, by label."""
    recipes, workers = known_recipes(config), config.template.workers
    val_images = Manifest.load(config.template.data).split("validation").num_samples
    seconds = {
        name: run_seconds(recipe, costs[name], workers=workers, val_images=val_images)
        for name, recipe in recipes.items()
    }
    return forecast_from(config, seconds, {name: costs[name].parameters for name in recipes})


def forecast_from(config: SweepConfig, seconds: Mapping[str, float], parameters: Mapping[str, int]) -> Forecast:
    """From the seconds of a trial and the size of its model, by the labels of `known_recipes`."""
    space, template = config.space, config.template
    mean_s = statistics.mean(seconds.values())
    state_bytes = statistics.mean(map(checkpoint_bytes, parameters.values()))
    trials = trial_count(space)
    return Forecast(
        trials=trials,
        confirmations=0 if space.is_one_stage else trials - space.size,
        concurrent=min(config.concurrent, trials),
        seconds=math.ceil(trials / config.concurrent) * mean_s,
        gpu_hours=trials * mean_s * template.workers * template.gpus_per_worker / 3600,
        disk_bytes=int(trials * (template.keep_newest + template.keep_best) * state_bytes),
        ends_early=space.scheduler != "none",
    )


def _machine(run: RunConfig) -> str:
    if run.gpus_per_worker:
        return f"{run.gpus_per_worker:g} GPU each"
    return f"{plural(run.cpus_per_worker, 'CPU')} each"


def trial_count(space: SearchSpace) -> int:
    """All trials of a sweep, those that repeat the best with other seeds among them."""
    repeated = space.size if space.is_one_stage else min(space.confirm, space.size)
    return space.size + (space.seeds - 1) * repeated


def run_seconds(recipe: Recipe, cost: Cost, *, workers: int, val_images: int, done_steps: int = 0) -> float:
    """What a run of `recipe` takes from its start on, validations included, each worker having the speed of `cost`."""
    images = (recipe.total_steps - done_steps) * recipe.global_batch
    validations = (done_steps == 0) + len([step for step in validation_steps(recipe) if step > done_steps])
    validated = validations * val_images
    return START_S + (images / cost.train_images_per_s + validated / cost.predict_images_per_s) / workers


def checkpoint_bytes(parameters: int) -> int:
    """Size of a checkpoint of a model with so many parameters, but for a few kilobytes."""
    return _STATE_COPIES * 4 * parameters
