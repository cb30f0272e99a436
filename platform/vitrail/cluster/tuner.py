"""A sweep: Ray Tune trials, each a data-parallel Ray Train run of its own, under one parent run in MLflow.

config = plan_sweep(SearchSpace.load(Path("necks.toml")), "data/ade20k", root=Path("runs"), name="necks")
config.save()
record = sweep(config)
print(decide(record).reason)
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vitrail.cluster.board import RunBoard
from vitrail.cluster.driver import hold_run
from vitrail.cluster.probe import measure_costs
from vitrail.cluster.run_tracker import open_tracker
from vitrail.cluster.sweep_plan import SweepConfig
from vitrail.cluster.sweep_progress import show_sweep
from vitrail.cluster.sweep_recorder import Recorder
from vitrail.cluster.tune_stage import SweepInterruptedError, run_stage
from vitrail.data.files import write_aside
from vitrail.sweep.page import render_report
from vitrail.sweep.record import Configuration, Cost, SweepRecord
from vitrail.sweep.space import apply
from vitrail.tracking.sweep_report import REPORT_FILE, log_sweep
from vitrail.tracking.tracker import MlflowTracker, start_run


def sweep(
    config: SweepConfig, *, costs: dict[str, Cost] | None = None, show: bool = True, retry_failed: bool = False
) -> SweepRecord:
    """Run every trial that is not over, and leave record and report in the sweep's folder; Ray must be started.

    Args:
        costs: what is known of them by label; what is missing is measured at the end.
        retry_failed: run trials that failed once more.

    Raises:
        SweepInterruptedError: this process was told to stop; the sweep can be gone on with.
        RunBusyError: another process drives this sweep.
    """
    with hold_run(config.folder):
        recorder = Recorder(config)
        recorder.begin(costs or {})
        parent = open_parent(config)
        board = RunBoard.open(config.name)
        try:
            with show_sweep(config, board, enabled=show), _sigterm_as_interrupt():
                _run_stages(config, recorder, board, retry_failed=retry_failed)
        except SweepInterruptedError:
            _report(config, recorder.record, parent)
            parent.finish("KILLED")
            raise
        finally:
            board.close()
        record = _with_costs(config, recorder.record)
        record.save(recorder.path)
        _end_stopped_runs(config, record)
        _report(config, record, parent)
        parent.finish("FINISHED")
        return record


def _run_stages(config: SweepConfig, recorder: Recorder, board: RunBoard, *, retry_failed: bool) -> None:
    """Search, then train the best again with other seeds where the search had one seed alone."""
    space = config.space

    def run(stage: str, pairs: list[tuple[Configuration, int]] | None) -> None:
        run_stage(config, recorder, board, stage, pairs, retry_failed=retry_failed)

    seeds = range(space.seeds if space.is_one_stage else 1)
    known = space.search != "optuna"
    run("search", [(chosen, seed) for seed in seeds for chosen in space.configurations()] if known else None)
    if not space.is_one_stage:
        best = best_configurations(recorder.record, space.confirm)
        run("confirm", [(chosen, seed) for seed in range(1, space.seeds) for chosen in best])


def best_configurations(record: SweepRecord, count: int) -> list[Configuration]:
    """Of the first seed's trials that reached their last step, the configurations of the best."""
    finished = [trial for trial in record.trials if trial.status == "finished" and trial.seed == 0 and trial.best]
    finished.sort(key=lambda trial: trial.best.miou if trial.best else 0.0, reverse=True)
    return [trial.configuration for trial in finished[:count]]


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let a SIGTERM do what Ctrl-C does: Tune ends its trials, saves its state and returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_costs(config: SweepConfig, record: SweepRecord) -> SweepRecord:
    """The record with the costs of all its configurations."""
    missing = {
        trial.label: apply(config.template.recipe, trial.configuration)
        for trial in record.trials
        if trial.label not in record.costs
    }
    return record.model_copy(update={"costs": record.costs | measure_costs(config.template, missing)})


def _end_stopped_runs(config: SweepConfig, record: SweepRecord) -> None:
    """Say in MLflow what became of the runs that the scheduler ended, whose own processes could not."""
    for trial in record.trials:
        if trial.status == "stopped":
            tracker = open_tracker(config.trial(trial.configuration, trial.seed))
            tracker.set_tags({"vitrail.stopped": f"by {config.space.scheduler} after step {trial.step}"})
            tracker.finish("KILLED")


def open_parent(config: SweepConfig) -> MlflowTracker:
    """Begin or continue the sweep's own run in MLflow, of which its trials' runs are children."""
    tracking = config.template.tracking
    assert tracking is not None
    assert tracking.parent_run_key is not None
    space = config.space.model_dump(mode="json")
    return start_run(
        tracking_uri=tracking.uri,
        experiment=tracking.experiment,
        run_name=config.name,
        run_key=tracking.parent_run_key,
        params={"configurations": config.space.size, **{name: value for name, value in space.items() if value}},
        tags={"vitrail.kind": "sweep", "mlflow.source.name": tracking.source},
        folder=config.folder,
    )


def _report(config: SweepConfig, record: SweepRecord, parent: MlflowTracker) -> None:
    """Leave the report in the folder, and with table and pictures in MLflow."""
    page = render_report(record).encode()
    write_aside(config.folder / REPORT_FILE, page)
    log_sweep(parent, record, page)
