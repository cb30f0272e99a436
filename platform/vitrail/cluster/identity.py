"""Whose folder a run's folder is: a run has an identity, and another one of the same name is refused."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitrail.checkpoint_store import CheckpointStore
from vitrail.config import Recipe, RunConfig
from vitrail.errors import UsageError

RUN_FILE = "run.json"
THROUGHPUT = "throughput.json"
"""In a run's folder, its throughput card."""


class RunExistsError(UsageError):
    """A run folder that was not asked to be continued, or that belongs to another configuration."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"{self.folder} {self.reason}"


def claim_folder(config: RunConfig, *, resume: bool) -> None:
    """Make the run's folder this run's own, or check that it already is; raises as `check_folder`."""
    if check_folder(config, resume=resume):
        return
    path = Path(config.folder) / RUN_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".writing")
        aside.write_text(
            json.dumps({"identity": config.identity(), "config": config.model_dump(mode="json")}, indent=1)
        )
        aside.rename(path)
    except OSError as error:
        raise UsageError(f"cannot write the run's folder {config.folder}: {error.strerror}") from error


def check_folder(config: RunConfig, *, resume: bool) -> bool:
    """Whether the run's folder holds this run already, which is to be continued.

    Raises:
        RunExistsError: it is not, or the folder holds another run.
    """
    path = Path(config.folder) / RUN_FILE
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    different = _differences(_as_written_today(found["identity"]), config.identity())
    if different:
        raise RunExistsError(config.folder, "holds another run: " + "; ".join(different) + "; choose another --name")
    if not resume:
        raise RunExistsError(
            config.folder, "already holds this run; continue it with --resume or choose another --name"
        )
    return True


def check_checkpoints(config: RunConfig) -> None:
    """Refuse to go on from checkpoints of another run, which a folder of checkpoints named by the user may hold.

    Raises:
        RunExistsError: they are of another recipe, data set or seed.
    """
    found = CheckpointStore.at(config.checkpoints).checkpoints()
    if not found:
        return
    info = found[-1].info
    theirs = {
        "recipe": info.recipe.model_dump(mode="json"),
        "data_fingerprint": info.data.fingerprint,
        "seed": info.seed,
    }
    ours = {key: value for key, value in config.identity().items() if key in theirs}
    different = _differences(theirs, ours)
    if different:
        raise RunExistsError(
            config.checkpoints, "holds checkpoints of another run: " + "; ".join(different) + "; choose another place"
        )


def _as_written_today(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity with the defaults of what recipes did not have when it was written."""
    try:
        return {**identity, "recipe": Recipe.model_validate(identity["recipe"]).model_dump(mode="json")}
    except ValidationError:
        return identity


def _differences(found: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*found, *asked}):
        before, now = found.get(key), asked.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key} is {before!r} there and {now!r} here")
    return lines
