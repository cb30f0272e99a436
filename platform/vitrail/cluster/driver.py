"""The process that drives a run: it holds the run while it lives, and passes a SIGTERM on to the workers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vitrail.cluster import holding
from vitrail.cluster.board import RunBoard
from vitrail.cluster.holding import HeldError, hold
from vitrail.errors import UsageError

_LOCK = "driver.lock"


class RunBusyError(UsageError):
    """A run that another living process drives."""

    def __init__(self, folder: str, holder: str) -> None:
        super().__init__(folder, holder)
        self.folder, self.holder = folder, holder

    def __str__(self) -> str:
        return f"{self.folder} is being trained by {self.holder}; wait for it to end, or stop it"


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Keep other processes from driving the run in `folder`; the system lets go when this one ends, however it ends.

    Raises:
        RunBusyError: another process holds it.
    """
    try:
        with hold(folder / _LOCK):
            yield
    except HeldError as error:
        raise RunBusyError(str(folder), error.holder) from None


def is_held(folder: Path) -> bool:
    """Whether a living process drives the run in `folder`."""
    return holding.is_held(folder / _LOCK)


def driver_host(folder: Path) -> str | None:
    """Name of the machine whose process drives, or drove, the run in `folder`."""
    path = folder / _LOCK
    _, found, host = path.read_text().partition(" on ") if path.is_file() else ("", "", "")
    return host.strip() if found else None


@contextmanager
def stop_on_sigterm(board: RunBoard) -> Iterator[None]:
    """Let a SIGTERM ask the workers to save and end, in place of ending this process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        # Not from inside the handler: it may have interrupted Ray, whose locks are then taken.
        threading.Thread(target=board.request_stop, args=("SIGTERM",), daemon=True).start()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
