"""Runs that MLflow shows as running although the process that drove them is dead: marked as what they are."""

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vitrail.cluster.driver import driver_host, is_held
from vitrail.cluster.identity import RUN_FILE
from vitrail.cluster.run_tracker import open_tracker
from vitrail.cluster.trainer import finished_result
from vitrail.config import RunConfig
from vitrail.tracking.journal import Journal
from vitrail.training.continuity import Continuity

_QUIET_S = 600.0
"""How long nothing must have been heard of a run on another machine, whose lock may not be seen from here."""


@dataclass(frozen=True)
class Reconciled:
    """A run that was left running, and what it is marked as now."""

    name: str
    folder: Path
    status: Literal["FINISHED", "KILLED"]
    delivered: bool
    """Whether MLflow has heard of it; otherwise it is kept in the run's folder until the run is opened again."""


def reconcile(root: Path, *, timeout_s: float = 30.0) -> list[Reconciled]:
    """Look at every run below `root`, and mark those that nobody drives any more."""
    left = [path.parent for path in sorted(root.glob(f"**/{RUN_FILE}")) if _is_left_running(path.parent)]
    return [found for folder in left if (found := _mark(folder, timeout_s)) is not None]


def _is_left_running(folder: Path) -> bool:
    if not (folder / "outbox").is_dir() or is_held(folder):
        return False
    elsewhere = driver_host(folder) != socket.gethostname()
    if elsewhere and time.time() - Continuity.load(folder).at_s < _QUIET_S:
        return False
    kinds = [entry.record.get("kind") for entry in Journal(folder / "outbox").entries(0) if entry.record is not None]
    states = [kind for kind in kinds if kind in ("run", "finish")]
    return bool(states) and states[-1] == "run"


def _mark(folder: Path, timeout_s: float) -> Reconciled | None:
    try:
        config = RunConfig.model_validate(json.loads((folder / RUN_FILE).read_text())["config"])
    except (ValueError, KeyError, ValidationError):
        return None  # written by another version: its own command continues it
    status: Literal["FINISHED", "KILLED"] = "FINISHED" if finished_result(config) is not None else "KILLED"
    tracker = open_tracker(config)
    tracker.set_tags({"vitrail.reconciled": "its driver was gone"})
    return Reconciled(config.name, folder, status, tracker.finish(status, timeout_s=timeout_s))
