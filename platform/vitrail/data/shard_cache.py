"""Shards of an object store, kept on this machine so that each is fetched once, whatever the number of processes."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

from vitrail.data.manifest import Shard
from vitrail.data.storage import Folder
from vitrail.errors import DataError, UsageError


def fetch_shard(folder: Folder, shard: Shard, fingerprint: str) -> Path:
    """The path of the shard on this machine, fetched and checked unless it is there.

    Raises:
        DataError: the shard is not in the store, or has other bytes than the manifest says.
        UsageError: the store cannot be reached, or the cache cannot be written, or is full.
    """
    path = cache_folder() / fingerprint / shard.path
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if path.is_file() and path.stat().st_size == shard.size_bytes:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(folder, shard, aside)
        aside.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot keep shards in {path.parent}: {error.strerror}; name a place in VITRAIL_CACHE"
        ) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return path


def _fetch(folder: Folder, shard: Shard, path: Path) -> None:
    path.touch()  # before the store is asked
    try:
        folder.fetch(shard.path, path)
    except FileNotFoundError:
        raise DataError(
            f"{folder}/{shard.path} is listed in the manifest but does not exist; prepare it again"
        ) from None
    if Folder.at(path.parent).sha256(path.name) != shard.sha256:
        raise DataError(f"{folder}/{shard.path} is damaged: its bytes are not those of the manifest; prepare it again")


def cache_folder() -> Path:
    """Where shards are kept: `VITRAIL_CACHE`, or vitrail's part of the user's cache."""
    named = os.environ.get("VITRAIL_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "vitrail"
