"""Files that a living process holds: the system lets go when it ends, however it ends."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vitrail.errors import VitrailError

_ASKED_S = 1.0
"""Whoever asks whether a file is held has it for a moment."""


class HeldError(VitrailError):
    """Another living process holds a file."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        return f"{self.path} is held by {self.holder}"


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a file, which is made and says who we are, until the block ends.

    Raises:
        HeldError: another process holds it.
    """
    deadline = time.monotonic() + _ASKED_S
    with path.open("a+") as file:
        while not _taken(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                raise HeldError(str(path), file.read().strip() or "another process")
            time.sleep(0.02)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def wait_and_hold(path: Path) -> Iterator[None]:
    """Hold a file until the block ends, once nobody else does."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether a living process holds a file; none need be there."""
    if not path.is_file():
        return False
    with path.open() as file:
        return not _taken(file, fcntl.LOCK_SH)


def _taken(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
