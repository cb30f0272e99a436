"""One stage of a sweep in Ray Tune: trials of a list, or those that a search proposes, each a Ray Train run of its own.

What has ended stays ended: the record beside the trials says so, and Tune's own state brings back its search and its
scheduler. A trial that was cut off goes on from its own checkpoint, at the exact step. Tune's state is made of pickles:
go on only with sweeps whose folder nobody else may write to.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from vitrail.cluster.board import RunBoard
from vitrail.cluster.capacity import Machine, startable_machines
from vitrail.cluster.driver import RunBusyError
from vitrail.cluster.sweep_plan import SweepConfig
from vitrail.cluster.sweep_recorder import FAILURE, LAST_SCORE, Recorder, as_grid, chosen
from vitrail.cluster.trainer import train
from vitrail.config import RunConfig
from vitrail.errors import VitrailError
from vitrail.sweep.record import Configuration
from vitrail.sweep.space import Choices, Range, SearchSpace

# A trial's driver only waits for its workers: a sliver of the head's own resource takes no CPU from them.
_DRIVER = {"CPU": 0, "node:__internal_head__": 0.001}
_REDUCTION = 3
"""ASHA lets the best third of the trials go on at each rung."""
_NEVER = 1 << 31
"""Steps after which ASHA ends any trial, which end by themselves."""
_BUSY_POLL_S = 2.0


class SweepInterruptedError(VitrailError):
    """A sweep that was asked to stop before its trials were over."""

    def __init__(self, name: str, over: int, trials: int) -> None:
        super().__init__(name, over, trials)
        self.name, self.over, self.trials = name, over, trials

    def __str__(self) -> str:
        return (
            f"sweep {self.name} was interrupted with {self.over} of {self.trials} trials over; "
            f"--resume {self.name} goes on with it"
        )


def run_stage(
    config: SweepConfig,
    recorder: Recorder,
    board: RunBoard,
    stage: str,
    pairs: list[tuple[Configuration, int]] | None,
    *,
    retry_failed: bool,
) -> None:
    """Run the trials of a list, or those that Optuna proposes, to their end.

    Raises:
        SweepInterruptedError: not all of them are over.
    """
    if pairs is not None and not recorder.expect(pairs, retry_failed=retry_failed):
        return
    trainable: Any = tune.with_resources(
        tune.with_parameters(_run_trial, config=config, board=board, startable=startable_machines()),
        tune.PlacementGroupFactory([_DRIVER]),
    )
    storage = config.folder / "tune"
    if tune.Tuner.can_restore(str(storage / stage)):
        tuner = tune.Tuner.restore(str(storage / stage), trainable, resume_errored=retry_failed)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=_params(config.space, pairs),
            tune_config=tune.TuneConfig(
                metric="mIoU",
                mode="max",
                max_concurrent_trials=config.concurrent,
                num_samples=config.space.size if pairs is None else 1,
                search_alg=_optuna(config.space) if pairs is None else None,
                scheduler=_scheduler(config) if stage == "search" else None,
            ),
            run_config=tune.RunConfig(name=stage, storage_path=str(storage), callbacks=[recorder], verbose=0),
        )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures, and how to go on, are said in our words
    begun = len(tuner.fit())
    trials = recorder.record.trials
    over = sum(trial.is_over for trial in trials)
    if over < len(trials) or begun < (config.space.size if pairs is None else len(pairs)):
        raise SweepInterruptedError(config.name, over, len(trials))


def _params(space: SearchSpace, pairs: list[tuple[Configuration, int]] | None) -> dict[str, Any]:
    if pairs is not None:
        return as_grid(pairs)
    return {name: _domain(values) for name, values in space.vary.items()}


def _domain(values: Choices | Range) -> Any:
    if not isinstance(values, Range):
        return tune.choice(list(values))
    if values.integer:
        low, high = round(values.low), round(values.high) + 1
        return tune.lograndint(low, high) if values.log else tune.randint(low, high)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _optuna(space: SearchSpace) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=int(space.digest(), 16) % 2**32)


def _scheduler(config: SweepConfig) -> TrialScheduler | None:
    grace = config.template.recipe.val_interval
    if config.space.scheduler == "asha":
        return ASHAScheduler(time_attr="step", grace_period=grace, max_t=_NEVER, reduction_factor=_REDUCTION)
    if config.space.scheduler == "median":
        return MedianStoppingRule(time_attr="step", grace_period=grace)
    return None


def _run_trial(params: dict[str, Any], *, config: SweepConfig, board: RunBoard, startable: Sequence[Machine]) -> None:
    """One trial's driver: its run has a fixed folder, so a trial that is started again continues.

    The sweep's own driver knows what Ray may start; a trial's process may have been started without that knowledge.
    """
    run = config.trial(*chosen(params))
    failure = Path(run.folder) / FAILURE
    failure.unlink(missing_ok=True)
    try:
        while True:
            try:
                scores = [_ReportScores(run)]
                result = train(run, resume=True, show=False, callbacks=scores, board=board, startable=startable)
                break
            except RunBusyError:  # a search proposed what is being trained already
                time.sleep(_BUSY_POLL_S)
    except VitrailError as error:
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(str(error))
        raise
    last = result.last_info.scores
    assert last is not None
    tune.report({"step": run.recipe.total_steps, "mIoU": result.best_miou, LAST_SCORE: last.mIoU})


class _ReportScores(TuneReportCallback):  # type: ignore[misc]
    """Passes validations on to Tune, which wants a score in all it is told; a checkpoint between them has none.

    The last is left to the driver, when all is saved: a scheduler that ended the trial there would cut that short.
    """

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self._total_steps = run.recipe.total_steps

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if "mIoU" in metrics[0] and metrics[0]["step"] < self._total_steps:
            super().after_report(run_context, metrics, checkpoint)
