"""A script in a process of its own, which dies with this one; its output goes to ours and a file, without secrets."""

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from vitrail.cluster.watching.job_progress import read_progress
from vitrail.secrets import mask

_PR_SET_PDEATHSIG = 1
_PIECE_BYTES = 1 << 16
_SAID_CHARACTERS = 400
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
        """Line by line, for only of a whole line can be said what in it is secret."""
        assert self._process.stdout is not None
        for lines in _lines(self._process.stdout):
            text = mask(lines.decode(errors="surrogateescape"))
            shown = text.encode(errors="surrogateescape")
            self._log.write(shown)
            sys.stdout.buffer.write(shown)
            sys.stdout.buffer.flush()
            progress = read_progress(text[-_SAID_CHARACTERS:])
            if progress is not None and progress.seconds_left is not None:
                self.seconds_left = progress.seconds_left


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """One or more whole lines at a time, as they come; a line without end in pieces."""
    rest = b""
    for piece in _pieces(stream):
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        if len(rest) > _PIECE_BYTES:
            whole, newline, rest = whole + newline + rest, b"", b""
        if whole or newline:
            yield whole + newline
    if rest:
        yield rest


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read1(_PIECE_BYTES):  # type: ignore[attr-defined]
        yield piece


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
