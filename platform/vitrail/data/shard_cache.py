"""Shards of an object store, kept on this machine so that each is fetched once, whatever the number of processes."""

import os
import uuid
from pathlib import Path

from vitrail.data.manifest import Shard
from vitrail.data.storage import Folder, StorageError
from vitrail.errors import UsageError


def fetch_shard(folder: Folder, shard: Shard, fingerprint: str) -> Path:
    """The path of the shard on this machine, fetched and checked unless it is there.

    Raises:
        StorageError: the store cannot be reached, or has other bytes than the manifest says.
        UsageError: the cache cannot be written, or is full.
    """
    path = cache_folder() / fingerprint / shard.path
    if path.is_file() and path.stat().st_size == shard.size_bytes:
        return path
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
    except OSError as error:
        raise UsageError(
            f"cannot keep shards in {path.parent}: {error.strerror}; name a place in VITRAIL_CACHE"
        ) from None
    try:
        folder.fetch(shard.path, aside)
        if Folder.at(aside.parent).sha256(aside.name) != shard.sha256:
            raise StorageError(f"{folder}/{shard.path}", "its bytes are not those of the manifest; prepare it again")
        aside.replace(path)
    except OSError as error:
        raise StorageError(f"{folder}/{shard.path}", str(error)) from None
    finally:
        aside.unlink(missing_ok=True)
    return path


def cache_folder() -> Path:
    """Where shards are kept: `VITRAIL_CACHE`, or vitrail's part of the user's cache."""
    named = os.environ.get("VITRAIL_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "vitrail"
