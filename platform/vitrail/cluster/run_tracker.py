"""The MLflow run that belongs to a training run: what it is called, its parameters and its tags."""

from pathlib import Path
from typing import Any

from vitrail.config import Recipe, RunConfig
from vitrail.tracking.tracker import NullTracker, Tracker, start_run


def open_tracker(config: RunConfig) -> Tracker:
    """The run's tracker, a new one or the one that a worker before this one has written to."""
    tracking = config.tracking
    if tracking is None:
        return NullTracker()
    recipe = config.recipe
    params = {
        "recipe": recipe.name,
        "data": config.data,
        "seed": config.seed,
        "workers": config.workers,
        **recipe_parameters(recipe),
    }
    tags = {
        "vitrail.recipe": recipe.name,
        "vitrail.recipe_digest": recipe.digest(),
        "vitrail.data_fingerprint": config.data_fingerprint,
        "vitrail.folder": config.folder,
        "mlflow.source.name": tracking.source,
    }
    return start_run(
        tracking_uri=tracking.uri,
        experiment=tracking.experiment,
        run_name=config.name,
        run_key=config.run_key,
        params=params,
        tags=tags,
        parent_run_key=tracking.parent_run_key,
        folder=Path(config.folder),
    )


def recipe_parameters(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields as parameters of a run, by their paths."""
    return _flat(recipe.model_dump(mode="json", exclude={"name", "published"}))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
