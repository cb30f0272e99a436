"""A folder of records that outlives its process: what is to be sent, how far sending has come, what was refused.

    records.jsonl     one record a line, only ever appended to
    files/            pictures and texts that records point to, removed once sent
    state.json        bytes of records.jsonl dealt with, and what the sender has learnt
    quarantine.jsonl  records that the server refused for good, each with its reason

Survives the end of the process at any point. A crash of the machine may lose what the system had not yet written.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of the journal; `record` is None where the line cannot be read."""

    record: Record | None
    line: str
    end: int
    """Offset in bytes of the next line."""


class Journal:
    """The files of one outbox."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._records = folder / "records.jsonl"
        self._state = folder / "state.json"
        self._quarantine = folder / "quarantine.jsonl"
        self._lock = threading.Lock()
        self._file_count = 0
        _end_last_line(self._records)

    def append(self, record: Record) -> None:
        """Add a record; it is in the file, in one piece, when this returns."""
        self._append_line(self._records, json.dumps(record))

    def keep_file(self, content: bytes, suffix: str) -> str:
        """Name, within `files`, of a new file that holds `content`."""
        with self._lock:
            self._file_count += 1
            name = f"{time.time_ns()}-{os.getpid()}-{self._file_count}{suffix}"
        (self.files / name).write_bytes(content)
        return name

    def end(self) -> int:
        """Size of the journal in bytes."""
        return self._records.stat().st_size if self._records.exists() else 0

    def entries(self, offset: int) -> Iterator[Entry]:
        """The complete lines from `offset` on."""
        if not self._records.exists():
            return
        with self._records.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                text = line.decode(errors="replace").rstrip("\n")
                yield Entry(_parse(text), text, offset)

    def quarantine(self, record: Record | str, reason: str) -> None:
        """Put aside a record that cannot be sent."""
        self._append_line(self._quarantine, json.dumps({"at_ms": now_ms(), "reason": reason, "record": record}))

    def quarantined(self) -> list[Record]:
        """What was put aside: `at_ms`, `reason` and `record`."""
        if not self._quarantine.exists():
            return []
        return [json.loads(line) for line in self._quarantine.read_text().splitlines()]

    def load_state(self) -> Record:
        """What `save_state` was last given; empty at first, or where a crash of the machine has spoiled it."""
        return _parse(self._state.read_text()) or {} if self._state.exists() else {}

    def save_state(self, state: Record) -> None:
        """Replace the state in one step."""
        aside = self._state.with_suffix(".tmp")
        aside.write_text(json.dumps(state))
        aside.replace(self._state)

    def _append_line(self, path: Path, line: str) -> None:
        content = line.encode() + b"\n"
        with self._lock, path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                written = file.write(content)
            except OSError:
                written = 0
            if written != len(content):
                file.truncate(start)
                raise OSError(f"only {written} of {len(content)} bytes fit")


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit."""
    return time.time_ns() // 1_000_000


def _end_last_line(path: Path) -> None:
    """A process that died while writing leaves half a line; a newline keeps the damage to that line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _parse(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None
