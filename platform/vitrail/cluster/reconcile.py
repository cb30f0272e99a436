"""Runs and sweeps that MLflow shows as running although what drove them is dead: marked as what they are."""

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
from vitrail.cluster.sweep_plan import RECORD_FILE, SWEEP_FILE, SweepConfig
from vitrail.cluster.trainer import finished_result
from vitrail.cluster.tuner import open_parent
from vitrail.config import RunConfig
from vitrail.sweep.record import SweepRecord
from vitrail.tracking.journal import Journal
from vitrail.tracking.tracker import Tracker
from vitrail.training.continuity import Continuity

_QUIET_S = 600.0
"""How long nothing must have been heard of a run on another machine, whose lock may not be seen from here."""


@dataclass(frozen=True)
class Reconciled:
    """A run or sweep that was left running, and what it is marked as now."""

    name: str
    folder: Path
    status: Literal["FINISHED", "KILLED"]
    delivered: bool
    """Whether MLflow has heard of it; otherwise it is kept in the run's folder until the run is opened again."""


def reconcile(root: Path, *, timeout_s: float = 30.0) -> list[Reconciled]:
    """Look at every run and sweep below `root`, and mark those that nobody drives any more."""
    marked = []
    for name, mark in ((RUN_FILE, _mark_run), (SWEEP_FILE, _mark_sweep)):
        left = [path.parent for path in sorted(root.glob(f"**/{name}")) if _is_left_running(path.parent)]
        # Those that another version wrote are left out: its own command continues them.
        marked += [found for folder in left if (found := mark(folder, timeout_s)) is not None]
    return marked


def _is_left_running(folder: Path) -> bool:
    if not (folder / "outbox").is_dir() or is_held(folder):
        return False
    elsewhere = driver_host(folder) != socket.gethostname()
    if elsewhere and time.time() - _last_heard_s(folder) < _QUIET_S:
        return False
    kinds = [entry.record.get("kind") for entry in Journal(folder / "outbox").entries(0) if entry.record is not None]
    states = [kind for kind in kinds if kind in ("run", "finish")]
    return bool(states) and states[-1] == "run"


def _last_heard_s(folder: Path) -> float:
    record = folder / RECORD_FILE
    return record.stat().st_mtime if record.is_file() else Continuity.load(folder).at_s


def _mark_run(folder: Path, timeout_s: float) -> Reconciled | None:
    try:
        config = RunConfig.model_validate(json.loads((folder / RUN_FILE).read_text())["config"])
    except (ValueError, KeyError, ValidationError):
        return None
    return _ended(config.name, folder, open_tracker(config), finished_result(config) is not None, timeout_s)


def _mark_sweep(folder: Path, timeout_s: float) -> Reconciled | None:
    try:
        config, record = SweepConfig.load(folder), SweepRecord.load(folder / RECORD_FILE)
    except (OSError, ValueError):
        return None
    is_over = bool(record.trials) and all(trial.is_over for trial in record.trials)
    return _ended(config.name, folder, open_parent(config), is_over, timeout_s)


def _ended(name: str, folder: Path, tracker: Tracker, is_over: bool, timeout_s: float) -> Reconciled:
    tracker.set_tags({"vitrail.reconciled": "its driver was gone"})
    status: Literal["FINISHED", "KILLED"] = "FINISHED" if is_over else "KILLED"
    return Reconciled(name, folder, status, tracker.finish(status, timeout_s=timeout_s))
