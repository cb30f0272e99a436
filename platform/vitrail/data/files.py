"""Writes files so that a file that exists under its name is complete."""

import os
from pathlib import Path

from vitrail.errors import UsageError


def write_aside(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to a file beside `path`, flush it to the disk, and rename it.

    Raises:
        UsageError: the place cannot be written, or is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; free some space or choose another place") from None


def make_writable(folder: Path) -> None:
    """Create `folder` where it is missing and try that a file can be written into it.

    Raises:
        UsageError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {folder}: {error.strerror}; choose another output folder") from None
    probe = folder / f".probe.{os.getpid()}"
    write_aside(probe, b"")
    probe.unlink()
