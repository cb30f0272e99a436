"""Throughput cards of runs that trained the same model on such batches: from the folder of runs, and from MLflow."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitrail.cluster.identity import RUN_FILE, THROUGHPUT
from vitrail.cluster.run_tracker import recipe_parameters
from vitrail.config import ComputeConfig, Recipe, RunConfig
from vitrail.strict import Strict
from vitrail.tracking.environment import connect, retry

_MOST = 3
_LOOKED_AT = 50
_ON_A_CPU = "CPU"
"""What a throughput card calls a device that is none."""


class EarlierRun(Strict):
    """How fast a run was."""

    name: str
    where: str
    card: dict[str, Any]
    """A `ThroughputCard`, whose module needs torch."""
    val_interval: int
    """Steps from one of its validations to the next."""


def earlier_runs(root: Path, recipe: Recipe, compute: ComputeConfig, *, gpus: bool) -> list[EarlierRun]:
    """Runs below `root`, sweeps' trials among them, whose rate says what one of `recipe` would have; newest first."""
    files = sorted((*root.glob(f"*/{THROUGHPUT}"), *root.glob(f"*/*/{THROUGHPUT}")), key=_modified, reverse=True)
    found: list[EarlierRun] = []
    for path in files:
        config = _config(path.parent / RUN_FILE)
        if config is None or not _same_work(config.recipe, recipe):
            continue
        card = json.loads(path.read_text())
        if _same_device(card, compute, gpus=gpus):
            interval = min(config.recipe.val_interval, config.recipe.total_steps)
            found.append(EarlierRun(name=config.name, where=str(root), card=card, val_interval=interval))
        if len(found) == _MOST:
            break
    return found


def earlier_in_mlflow(tracking_uri: str, recipe: Recipe, compute: ComputeConfig, *, gpus: bool) -> list[EarlierRun]:
    """Runs that MLflow knows, newest first; raises `TrackingError` where it does not answer."""
    client = connect(tracking_uri)

    def search() -> list[EarlierRun]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        filter_ = f"params.recipe = '{recipe.name}' and metrics.`throughput/images_per_s` > 0"
        order = ["attributes.start_time DESC"]
        runs = client.search_runs(experiments, filter_, order_by=order, max_results=_LOOKED_AT)
        return list(_cards(client, runs, recipe, compute, gpus=gpus))

    return retry(search, tracking_uri=tracking_uri, timeout_s=0.0)


def _cards(client: Any, runs: list[Any], recipe: Recipe, compute: ComputeConfig, *, gpus: bool) -> Iterator[EarlierRun]:
    ours = {name: str(value) for name, value in recipe_parameters(recipe).items() if _decides(name)}
    left = _MOST
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            theirs = run.data.params
            if left == 0 or any(theirs.get(name) != value for name, value in ours.items()):
                continue
            card = json.loads(Path(client.download_artifacts(run.info.run_id, THROUGHPUT, folder)).read_text())
            if _same_device(card, compute, gpus=gpus):
                interval = min(int(theirs["val_interval"]), int(theirs["total_steps"]))
                yield EarlierRun(name=run.info.run_name, where="MLflow", card=card, val_interval=interval)
                left -= 1


def _decides(parameter: str) -> bool:
    """Whether a recipe's field has a part in how fast a step is."""
    return parameter.startswith(("model.", "transforms.")) or parameter == "global_batch"


def _same_work(one: Recipe, other: Recipe) -> bool:
    a, b = (recipe_parameters(recipe) for recipe in (one, other))
    return all(a.get(name) == b.get(name) for name in {*a, *b} if _decides(name))


def _same_device(card: dict[str, Any], compute: ComputeConfig, *, gpus: bool) -> bool:
    return card.get("precision") == compute.precision and (card.get("device") != _ON_A_CPU) == gpus


def _config(path: Path) -> RunConfig | None:
    """Of a run; None where there is none that this version can read."""
    try:
        return RunConfig.model_validate(json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, ValidationError):
        return None


def _modified(path: Path) -> float:
    return path.stat().st_mtime
