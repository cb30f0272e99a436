"""Shows a sweep while it runs: one live table on a terminal, lines elsewhere."""

import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vitrail.cluster.board import RunBoard
from vitrail.cluster.progress import TrainStatus, beside, clock
from vitrail.cluster.sweep_plan import RECORD_FILE, SweepConfig
from vitrail.sweep.record import SweepRecord, Trial

_POLL_S = 1.0


def show_sweep(config: SweepConfig, board: RunBoard, *, enabled: bool = True) -> AbstractContextManager[None]:
    """Print how the trials stand until the block ends."""
    show = _show_table if sys.stderr.isatty() else _show_lines
    return beside(partial(show, config, board)) if enabled else nullcontext()


def trial_table(record: SweepRecord, statuses: dict[str, TrainStatus]) -> Table:
    """A row per trial: best first, then those that run, those that wait, and those that failed."""
    over = sum(trial.is_over for trial in record.trials)
    table = Table(
        "trial", "step", "mIoU", "status", "left", title=f"{record.name}: {over} of {len(record.trials)} over"
    )
    for trial in sorted(record.trials, key=_place):
        status = statuses.get(trial.name) if trial.status == "running" else None
        score = f"{trial.best.miou:.2%}" if trial.best else ""
        left = _left(status)
        step = max(trial.step, status.step if status else 0)
        table.add_row(trial.name, f"{step}/{trial.total_steps}", score, _status(trial, status), left)
    return table


def trial_line(trial: Trial, *, over: int, trials: int) -> str:
    """How a trial stands as a line of a log, which `job_progress` reads."""
    score = f"  mIoU {trial.scores[-1].miou:.2%}" if trial.scores else ""
    return f"[{over}/{trials}] {trial.name}  {trial.step}/{trial.total_steps}{score}  {_status(trial, None)}"


def _show_table(config: SweepConfig, board: RunBoard, done: threading.Event) -> None:
    with Live(console=Console(stderr=True), refresh_per_second=2) as live:
        while True:
            ended = done.wait(_POLL_S)
            live.update(trial_table(SweepRecord.load(config.folder / RECORD_FILE), board.read_all()))
            if ended:
                return


def _show_lines(config: SweepConfig, board: RunBoard, done: threading.Event) -> None:
    """A line for every validation and every change of a trial's state."""
    seen: dict[str, tuple[str, int]] = {}
    while True:
        ended = done.wait(_POLL_S)
        record = SweepRecord.load(config.folder / RECORD_FILE)
        over = sum(trial.is_over for trial in record.trials)
        for trial in record.trials:
            news = (trial.status, len(trial.scores))
            if seen.get(trial.name, ("waiting", 0)) != news:
                print(trial_line(trial, over=over, trials=len(record.trials)), file=sys.stderr, flush=True)
            seen[trial.name] = news
        if ended:
            return


def _place(trial: Trial) -> tuple[int, float]:
    order = {"finished": 0, "running": 1, "stopped": 2, "waiting": 3, "failed": 4}
    return order[trial.status], -trial.best.miou if trial.best else 0.0


def _status(trial: Trial, status: TrainStatus | None) -> str:
    if trial.status == "failed":
        return f"failed: {(trial.error or '').splitlines()[0]}"
    return status.phase if status else trial.status


def _left(status: TrainStatus | None) -> str:
    if status is None or status.rates is None:
        return ""
    return clock(status.rates.seconds_left)
