"""Folders written or deleted under another name, so that what lies under its own name is complete.

    with writing_folder(root) as folder:      # root/.writing-…
        ...
        folder.rename(root / "done")
    delete_aside(root / "done")               # through root/.deleting-…

A process that is killed leaves such a folder behind. The name says whose it is, so that the next to write in `root`
clears away those of the dead and leaves those of the living.
"""

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

ABANDONED_AFTER_S = 6 * 3600.0
"""Where an owner cannot be asked whether it lives: longer than writing takes, from the first file to the last."""
_WRITING = ".writing-"
_DELETING = ".deleting-"
_OWNED = re.compile(rf"{re.escape(_WRITING)}([0-9a-f]{{8}})-(\d+)-[0-9a-f]{{8}}")


@contextmanager
def writing_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root` that is deleted after the block unless it was renamed; leftovers are cleared first."""
    root.mkdir(parents=True, exist_ok=True)
    clear_leftovers(root)
    folder = root / f"{_WRITING}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def delete_aside(folder: Path) -> None:
    """Delete a folder; at no moment is a part of it seen under its name. None need be there.

    Raises:
        OSError: it cannot be renamed. What then cannot be deleted is left to `clear_leftovers`.
    """
    aside = folder.with_name(f"{_DELETING}{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        flush(folder.parent)  # before the files go, also on a disk that loses power
        shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(root: Path) -> None:
    """Delete what dead processes have left in `root`, and what was to be deleted anyway."""
    for folder in root.glob(f"{_DELETING}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in root.glob(f"{_WRITING}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file, or a folder's list of names, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    """Whether its owner was a process of this machine and is dead, or nothing in it has changed for long."""
    owner = _OWNED.fullmatch(folder.name)
    if owner and owner[1] == _machine() and not _lives(int(owner[2])):
        return True
    changed = 0.0
    with suppress(FileNotFoundError):  # while we look, its owner may rename it
        changed = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return time.time() - changed > ABANDONED_AFTER_S


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """What a process id is unique in: this boot of this machine, and of its containers this one."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            path = Path(source)
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
