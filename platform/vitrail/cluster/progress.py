"""Showing on the driver what rank 0 posts to the run's board: a bar on a terminal, lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vitrail.cluster.board import RunBoard

_POLL_S = 0.5
_JOIN_S = 5.0
_LINE_INTERVAL_S = 10.0


@dataclass(frozen=True)
class TrainRates:
    """Means over the last steps."""

    loss: float
    lr: float
    images_per_s: float
    data_wait_share: float
    """Share of the time that the loop waited for a batch, 0..1."""
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.3f}  lr {self.lr:.2e}  {self.images_per_s:.1f} img/s  "
            f"data wait {self.data_wait_share:.0%}  {clock(self.seconds_left)} left"
        )


@dataclass(frozen=True)
class TrainStatus:
    """Where a training run stands."""

    phase: str
    step: int
    total_steps: int
    rates: TrainRates | None = None
    miou: float | None = None

    def __str__(self) -> str:
        score = None if self.miou is None else f"mIoU {self.miou:.2%}"
        return "  ".join(str(part) for part in (self.phase, self.rates, score) if part is not None)


def progress_line(name: str, status: TrainStatus) -> str:
    """A run's status as a line of a log, which `job_progress` reads."""
    return f"{name}  {status.step}/{status.total_steps}  {status}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, `00:01:05`; a day has no end at 24 hours."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def show_progress(board: RunBoard, name: str, *, enabled: bool = True) -> AbstractContextManager[None]:
    """Print what is posted to the board until the block ends."""
    show = _show_bar if sys.stderr.isatty() else _show_lines
    return beside(partial(show, board, name)) if enabled else nullcontext()


@contextmanager
def beside(show: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let `show` print in a thread until the block ends, which its event then says."""
    done = threading.Event()

    def watch() -> None:
        with suppress(ray.exceptions.RayError):  # the cluster went away under us: the driver's own call reports that
            show(done)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=_JOIN_S)


def _show_bar(board: RunBoard, name: str, done: threading.Event) -> None:
    status_column = TextColumn("{task.fields[s]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), status_column)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None, s="starting workers")
        while True:
            ended = done.wait(_POLL_S)
            status = board.read()
            if status is not None:
                bar.update(task, completed=status.step, total=status.total_steps, s=str(status))
            if ended:
                return


def _show_lines(board: RunBoard, name: str, done: threading.Event) -> None:
    printed, due = None, 0.0
    while True:
        ended = done.wait(_POLL_S)
        status = board.read()
        news = status is not None and status != printed
        if news and (ended or time.monotonic() >= due or (printed and status.phase != printed.phase)):
            print(progress_line(name, status), file=sys.stderr, flush=True)
            printed, due = status, time.monotonic() + _LINE_INTERVAL_S
        if ended:
            return
