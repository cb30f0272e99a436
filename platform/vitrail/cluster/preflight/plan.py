"""What is known of a planned run or sweep where its driver would be: its name, its place, and how fast others were."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.asked import SweepAsked
from vitrail.cluster.driver import RunBusyError, is_held
from vitrail.cluster.identity import check_checkpoints, check_folder
from vitrail.cluster.preflight.earlier_runs import EarlierRun, earlier_in_mlflow, earlier_runs
from vitrail.cluster.preflight.facts import RunFacts, SweepFacts
from vitrail.cluster.preflight.machine import nearest_folder
from vitrail.config import Recipe, RunConfig
from vitrail.data.manifest import Manifest
from vitrail.data.storage import Folder
from vitrail.errors import VitrailError
from vitrail.tracking.environment import TrackingError
from vitrail.tracking.store import is_http, local_store


def run_facts(config: RunConfig, *, root: Path, resume: bool) -> RunFacts:
    """Of a run; what cannot be asked where checkpoints go is left out, since the machines' answers say so."""
    manifest = Manifest.load(config.data)
    done_steps, kept = 0, 0
    name_error = _first_error(
        lambda: _check_free(config), lambda: check_folder(config, resume=resume), lambda: check_checkpoints(config)
    )
    try:
        stored = CheckpointStore.at(config.checkpoints).checkpoints()
    except VitrailError:
        stored = []
    if stored:
        done_steps, kept = stored[-1].info.step, len(stored)
    local = Folder.at(config.checkpoints).local
    return RunFacts(
        config=config,
        images={name: split.num_samples for name, split in manifest.splits.items()},
        data_bytes=sum(shard.size_bytes for split in manifest.splits.values() for shard in split.shards),
        name_error=name_error,
        done_steps=done_steps,
        kept=kept,
        free_bytes=shutil.disk_usage(nearest_folder(local)).free if local else None,
        earlier=_earlier(root, config, config.recipe),
    )


def sweep_facts(asked: SweepAsked) -> SweepFacts:
    """Of a sweep; imports torch."""
    from vitrail.cluster.sweep_plan import SweepConfig, known_recipes, trial_count

    if asked.resume is not None:
        config, name_error = SweepConfig.load(asked.root / asked.resume), None
    else:
        config = asked.plan()
        name_error = _first_error(config.check_new)
    manifest = Manifest.load(config.template.data)
    return SweepFacts(
        config=config.model_dump(mode="json"),
        at_once=min(config.concurrent, trial_count(config.space)),
        images={name: split.num_samples for name, split in manifest.splits.items()},
        name_error=name_error,
        earlier={
            label: _earlier(asked.root, config.template, recipe) for label, recipe in known_recipes(config).items()
        },
    )


def _earlier(root: Path, config: RunConfig, recipe: Recipe) -> tuple[EarlierRun, ...]:
    """In the runs' folder, or else in MLflow; none where that does not answer, which is told elsewhere."""
    gpus = config.gpus_per_worker > 0
    found = earlier_runs(root, recipe, config.compute, gpus=gpus)
    assert config.tracking is not None
    store = local_store(config.tracking.uri)
    if not found and (is_http(config.tracking.uri) or (store is not None and (store / "mlflow.db").is_file())):
        try:
            found = earlier_in_mlflow(config.tracking.uri, recipe, config.compute, gpus=gpus)
        except TrackingError:
            found = []
    return tuple(sorted(found, key=lambda run: run.card["workers"] != config.workers))


def _check_free(config: RunConfig) -> None:
    if is_held(Path(config.folder)):
        raise RunBusyError(config.folder, "another job")


def _first_error(*checks: Callable[[], Any]) -> str | None:
    for check in checks:
        try:
            check()
        except VitrailError as error:
            return " ".join(str(error).split())
    return None
