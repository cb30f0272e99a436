"""Single files by the path or URI that a user gives: fetched to be read here, or written here and sent.

tensors = read_tensors(fetch_file("s3://bucket/weights/vit.safetensors"))
with writing_file("s3://bucket/weights/out.safetensors") as path: ...
"""

import hashlib
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.data.shard_cache import cache_folder
from vitrail.data.storage import Folder
from vitrail.errors import UsageError


def is_stored(place: object) -> bool:
    """Whether a place is a URI, rather than a path of this machine."""
    return "://" in str(place)


def fetch_file(place: str) -> Path:
    """The file's path on this machine: its own, or that of a copy in `VITRAIL_CACHE`, fetched again once it changes.

    Raises:
        UsageError: the store has no such file, or cannot be reached, or the cache cannot be written.
    """
    if not is_stored(place):
        return Path(place)
    folder, name = _parts(place)
    entry = next((entry for entry in folder.files() if entry.name == name), None)
    if entry is None:
        raise UsageError(f"{folder}/{name} does not exist")
    state = hashlib.sha256(f"{folder.uri} {entry}".encode()).hexdigest()[:16]
    path = cache_folder() / "files" / state / name
    if path.is_file():
        return path
    aside = path.with_name(f".{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.fetch(name, aside)
        aside.replace(path)
    except FileNotFoundError:
        raise UsageError(f"{folder}/{name} does not exist any more") from None
    except OSError as error:
        raise UsageError(
            f"cannot keep files in {path.parent}: {error.strerror}; name a place in VITRAIL_CACHE"
        ) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return path


@contextmanager
def writing_file(place: str) -> Iterator[Path]:
    """The path to write to, which for a URI is one aside that is sent when the block has ended well.

    Raises:
        UsageError: the store cannot be written to; known before the block begins.
    """
    if not is_stored(place):
        yield Path(place)
        return
    folder, name = _parts(place)
    folder.make_writable()
    with tempfile.TemporaryDirectory() as aside:
        yield Path(aside) / name
        folder.upload(Path(aside) / name, name)


def _parts(place: str) -> tuple[Folder, str]:
    path, mark, query = place.partition("?")
    parent, slash, name = path.rpartition("/")
    if not (slash and name) or parent.endswith((":", ":/")):
        raise UsageError(f"{path} names no file in a bucket; expected SCHEME://BUCKET/FOLDER/FILE")
    return Folder.at(f"{parent}{mark}{query}"), name
