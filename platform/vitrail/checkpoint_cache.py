"""Checkpoints of an object store, kept on this machine: each file is fetched once, whatever the number of processes."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.checkpoint import INFO, CheckpointError, CheckpointInfo, check_files, info_bytes
from vitrail.data.files import write_aside
from vitrail.data.shard_cache import cache_folder
from vitrail.data.storage import Folder
from vitrail.errors import UsageError

_UNUSED_AFTER_S = 24 * 3600.0
"""A run that is restarted often would fill the disk with checkpoints that it will never ask for again."""


def checkpoint_cache() -> Path:
    """Where checkpoints are kept: a part of `VITRAIL_CACHE`."""
    return cache_folder() / "checkpoints"


def keep_checkpoint(place: Folder, info: CheckpointInfo, files: Mapping[str, str], *, saved_ns: int) -> Path:
    """A folder of this machine with `files` and description of a checkpoint, checked; fetched unless there and good.

    Raises:
        CheckpointError: a file is not in the store, or has another checksum there.
        UsageError: the store cannot be reached, or the cache cannot be written, or is full.
    """
    description = info_bytes(info)
    folder = checkpoint_cache() / f"{place.name}-{hashlib.sha256(description).hexdigest()[:16]}"
    try:
        with _alone_in(folder):
            folder.mkdir(exist_ok=True)
            for name, checksum in files.items():
                _keep_file(place, name, checksum, folder)
            write_aside(folder / INFO, description)
            os.utime(folder / INFO, ns=(saved_ns, saved_ns))  # the same on every machine: it dates registered scores
        _forget_unused()
    except OSError as error:
        raise UsageError(
            f"cannot keep checkpoints in {folder.parent}: {error.strerror}; name a place in VITRAIL_CACHE"
        ) from None
    return folder


def _keep_file(place: Folder, name: str, checksum: str, folder: Path) -> None:
    with suppress(CheckpointError):
        check_files(folder, {name: checksum})
        return
    aside = folder / f".{name}.part"  # one of a killed process is written over
    aside.touch()  # before the store is asked
    try:
        place.fetch(name, aside)
        check_files(folder, {aside.name: checksum})
        aside.replace(folder / name)
    except FileNotFoundError:
        raise CheckpointError(str(place), f"{name} is missing") from None
    except CheckpointError:
        raise CheckpointError(str(place), f"{name} has changed: {name} does not match its checksum") from None
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The only one on this machine in a folder of the cache; the lock's time says when the folder was last used."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_of(folder).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno())
        yield


def _forget_unused() -> None:
    for folder in checkpoint_cache().glob("[!.]*"):
        with suppress(OSError), _lock_of(folder).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(lock.fileno()).st_mtime > _UNUSED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
