"""A script in a process of its own, whose output goes to this process's own and to a file, and which dies with it."""

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from vitrail.cluster.watching.job_progress import read_progress

_PR_SET_PDEATHSIG = 1
_PIECE_BYTES = 1 << 16
_SAID_BYTES = 400
"""As much of the output's end as holds the last line about its progress."""


class ScriptProcess:
    """A running `python SCRIPT …`."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """Start it; `log` is added to. Call it on the main thread, whose death ends the script."""
        self._log = log.open("ab", buffering=0)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
        self.seconds_left: float | None = None
        """By its own last word."""
        self._copying = threading.Thread(target=self._copy, daemon=True)
        self._copying.start()

    def ended(self, within_s: float) -> int | None:
        """Its exit code, as a shell gives it, if it ends in time, and all that it has printed is copied; else None."""
        try:
            code = self._process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            return None
        self._copying.join(timeout=10)  # what it started, and left behind, may hold its output open
        self._log.close()
        return 128 - code if code < 0 else code

    def ask_to_end(self) -> None:
        """Send it a SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _copy(self) -> None:
        assert self._process.stdout is not None
        said = b""
        for piece in _pieces(self._process.stdout):
            self._log.write(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            said = (said + piece)[-_SAID_BYTES:]
            progress = read_progress(said.decode(errors="replace"))
            if progress is not None and progress.seconds_left is not None:
                self.seconds_left = progress.seconds_left


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read1(_PIECE_BYTES):  # type: ignore[attr-defined]
        yield piece


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
