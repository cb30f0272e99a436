"""Ends a worker that hangs, and leaves behind where it hung.

watchdog = Watchdog(folder / STALLS / "rank_0001.txt", timeout_s=600)
watchdog.beat("step 12: waiting for a batch")
"""

import faulthandler
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

STALLS = "stalls"
"""Folder of a run that holds one file per rank."""

_LINE = 120


class Watchdog:
    """If no beat comes for `timeout_s`, every thread's stack is written to `path`, and the process ends.

    A C thread of Python's `faulthandler` watches, so it also fires when Python's lock is held.
    """

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._timeout_s = timeout_s

    def beat(self, doing: str) -> None:
        """Note what comes now, and start counting anew. Costs two system calls."""
        os.pwrite(self._file.fileno(), f"{doing[: _LINE - 1]:<{_LINE - 1}}\n".encode(), 0)
        self._file.seek(_LINE)
        faulthandler.dump_traceback_later(self._timeout_s, file=self._file, exit=True)

    def __enter__(self) -> Self:
        self.beat("setting up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Stall:
    """Where a worker hung."""

    rank: int
    doing: str
    stack: str

    def __str__(self) -> str:
        return f"rank {self.rank} hung at {self.doing}\n{self.stack}"


def read_stalls(folder: Path) -> list[Stall]:
    """What watchdogs that fired have left in a folder, the first to fire first."""
    stalls = []
    for path in sorted(folder.glob("rank_*.txt"), key=lambda path: path.stat().st_mtime):
        doing, _, dump = path.read_text(errors="replace").partition("\n")
        if dump.startswith("Timeout"):
            stalls.append(Stall(int(path.stem.rpartition("_")[2]), doing.strip(), _main_thread(dump)))
    return stalls


def stall_file(folder: Path, rank: int) -> Path:
    """Where the watchdog of a rank writes."""
    return folder / f"rank_{rank:04d}.txt"


def _main_thread(dump: str) -> str:
    """The stack of the thread that trains, which is the one inside the training loop; otherwise all of them."""
    threads = re.split(r"\n(?=(?:Current thread|Thread) 0x)", dump)
    training = [thread for thread in threads if "train_worker" in thread]
    return (training or [dump])[0].strip()
