"""Keeps a sweep's record on disk while Ray Tune runs its trials."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from vitrail.checkpoint import CHECKPOINTS
from vitrail.cluster.board import RunBoard
from vitrail.cluster.sweep_plan import RECORD_FILE, SweepConfig, new_record
from vitrail.cluster.trainer import finished_result
from vitrail.config import RunConfig
from vitrail.sweep.record import Configuration, Cost, Score, SweepRecord, Trial, Value

FAILURE = "failure.txt"
"""In a trial's folder: why it failed."""
LAST_SCORE = "last_mIoU"
"""Key of the last step's score in a trial's last report, whose own is the best, for the search."""
_SEED = "seed"
_LISTED = "trial"


def as_grid(pairs: Iterable[tuple[Configuration, int]]) -> dict[str, Any]:
    """Tune's parameter space of a list of configurations with seeds."""
    return {_LISTED: tune.grid_search([{"configuration": chosen, _SEED: seed} for chosen, seed in pairs])}


def chosen(params: dict[str, Any]) -> tuple[Configuration, int]:
    """What a trial is to train: one of a list, or what a search algorithm proposed, which has the first seed."""
    if _LISTED in params:
        return params[_LISTED]["configuration"], params[_LISTED][_SEED]
    return {name: _short(value) for name, value in params.items()}, 0


class Recorder(tune.Callback):  # type: ignore[misc]
    """Writes every event into the record's file.

    Tune pickles its callbacks and brings them back when a sweep goes on, so what is known is in the file alone.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._started: dict[str, float] = {}

    @property
    def path(self) -> Path:
        """Of the record."""
        return self._config.folder / RECORD_FILE

    @property
    def record(self) -> SweepRecord:
        """As it stands."""
        return SweepRecord.load(self.path)

    def begin(self, costs: Mapping[str, Cost]) -> None:
        """Make the record, or take up the one of an earlier process, whose trials do not run any more."""
        record = self.record if self.path.is_file() else new_record(self._config)
        for trial in record.trials:
            if trial.status == "running":
                record = record.with_trial(trial.model_copy(update={"status": "waiting"}))
        record.model_copy(update={"costs": {**record.costs, **costs}}).save(self.path)

    def expect(self, pairs: Iterable[tuple[Configuration, int]], *, retry_failed: bool) -> bool:
        """Note trials that are to come; returns whether any of them is still to be run."""
        record, left = self.record, False
        for pair in pairs:
            trial = self._config.waiting(*pair)
            trial = record.trial(trial.name) or trial
            record = record.with_trial(trial)
            left = left or not trial.is_over or (retry_failed and trial.status == "failed")
        record.save(self.path)
        return left

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its driver was started, for the first time or anew."""
        self._started[trial.trial_id] = time.time()
        self._change(trial, status="running", error=None)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """It was validated."""
        score = Score(step=result["step"], miou=result.get(LAST_SCORE, result["mIoU"]))
        self._save(self._known(trial).scored(score))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It reached its last step, or the scheduler ended it."""
        result = finished_result(self._run(trial))
        self._free_places(trial)
        if result is None:
            self._change(trial, status="stopped", seconds=self._seconds(trial))
        else:
            run, step = self._run(trial), result.last_info.step
            place = run.checkpoint_root or f"{run.name}/{CHECKPOINTS}"
            best = f"{place}, step {result.best_info.step:,}"
            self._change(trial, status="finished", step=step, checkpoint=best, seconds=self._seconds(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed, for the reason that its driver left, or died without leaving one."""
        self._free_places(trial)
        left = Path(self._run(trial).folder) / FAILURE
        reason = left.read_text() if left.is_file() else str(trial.get_error() or "its driver died").splitlines()[-1]
        self._change(trial, status="failed", error=reason.strip(), seconds=self._seconds(trial))

    def _run(self, trial: Any) -> RunConfig:
        return self._config.trial(*chosen(trial.config))

    def _free_places(self, trial: Any) -> None:
        """Its driver may have been killed, and then nobody else gives back what its workers were to have."""
        RunBoard.find(self._config.name).of(self._run(trial).name).free_places()

    def _known(self, trial: Any) -> Trial:
        waiting = self._config.waiting(*chosen(trial.config))
        return self.record.trial(waiting.name) or waiting

    def _seconds(self, trial: Any) -> float:
        return self._known(trial).seconds + time.time() - self._started.pop(trial.trial_id, time.time())

    def _change(self, trial: Any, **changes: Any) -> None:
        self._save(self._known(trial).model_copy(update=changes))

    def _save(self, trial: Trial) -> None:
        self.record.with_trial(trial).save(self.path)


def _short(value: Value) -> Value:
    """As a search space draws it: four digits are enough, and make a readable name."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
