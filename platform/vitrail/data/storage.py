"""Folders that data sets lie in: on a disk, or in an object store through pyarrow's file systems.

    folder = Folder.at("s3://bucket/ade20k")      # or "gs://bucket/ade20k", or a path
    folder.read("manifest.json")

Names are relative to the folder and use `/`. A file that exists under its name is complete. Credentials and endpoints
come from the environment, as the store's own tools read them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).
"""

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from vitrail.data.files import make_writable, write_aside
from vitrail.errors import DataError, UsageError

_REMOTE = re.compile(r"^[a-z][a-z0-9+]+://")
_PIECE_BYTES = 8 << 20


class StorageError(DataError):
    """An object store that cannot be reached, or refuses."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


@dataclass(frozen=True)
class Entry:
    """A file directly in a folder."""

    name: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Folder:
    """A folder by its absolute path or URI. Pickles as that; nothing is opened before it is needed."""

    uri: str

    @classmethod
    def at(cls, place: "Folder | Path | str") -> Self:
        """The folder of a path, made absolute, or of a URI.

        Raises:
            UsageError: a URI with credentials in it, or of a scheme that pyarrow does not know.
        """
        if isinstance(place, Folder):
            return cls(place.uri)
        text = str(place)
        if not _REMOTE.match(text):
            return cls(str(Path(text).resolve()))
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise UsageError(
                f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path} has credentials in it, which would "
                "end in logs and job metadata; leave them out and set the environment (AWS_ACCESS_KEY_ID, …)"
            )
        folder = cls(text.rstrip("/"))
        _open(folder.uri)
        return folder

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._path.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None in an object store."""
        return None if _REMOTE.match(self.uri) else Path(self.uri)

    def contains(self, other: "Folder") -> bool:
        """Whether `other` is this folder or lies in it."""
        return f"{other.uri}/".startswith(f"{self.uri}/")

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises OSError (FileNotFoundError where there is none)."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        with self._filesystem.open_input_stream(self._full(name)) as stream:
            return bytes(stream.read())

    def sha256(self, name: str) -> str:
        """Hexadecimal sha256 of a file's bytes, read in pieces."""
        digest = hashlib.sha256()
        with self._filesystem.open_input_stream(self._full(name)) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to `path` on this machine, in pieces."""
        with self._filesystem.open_input_stream(self._full(name)) as stream, path.open("wb") as file:
            while piece := stream.read(_PIECE_BYTES):
                file.write(piece)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file whole.

        Raises:
            UsageError: the place cannot be written, or is full.
        """
        if self.local is not None:
            write_aside(self.local / name, data)
            return
        with self._refusals(name), self._filesystem.open_output_stream(self._full(name)) as stream:
            stream.write(pa.py_buffer(data))  # becomes visible when the upload is complete

    def size_bytes(self, name: str) -> int | None:
        """Size of a file, None where there is none."""
        found = self._info(name)
        return found.size if found.type == fs.FileType.File else None

    def is_folder(self, name: str = "") -> bool:
        """Whether there is a folder of that name: in an object store, anything below it."""
        return bool(self._info(name).type == fs.FileType.Directory)

    def files(self, name: str = "") -> list[Entry]:
        """The files directly in a folder, sorted by name; none where there is no folder."""
        infos = self._info(fs.FileSelector(self._full(name), allow_not_found=True))
        try:
            files = [info for info in infos if info.type == fs.FileType.File]
            entries = [Entry(info.base_name, info.size, info.mtime_ns or 0) for info in files]
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self}/{name} has a file whose name is not UTF-8 ({error.object!r}); rename it"
            ) from None
        return sorted(entries, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        """Delete a file; none need be there."""
        if self.size_bytes(name) is not None:
            self._filesystem.delete_file(self._full(name))

    def make_writable(self) -> None:
        """Create the folder where it is missing and try that a file can be written into it.

        Raises:
            UsageError: it cannot.
        """
        if self.local is not None:
            make_writable(self.local)
            return
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        self.write(probe, b"")
        self.delete(probe)

    @property
    def _filesystem(self) -> Any:
        return _open(self.uri)[0]

    @property
    def _path(self) -> str:
        return str(_open(self.uri)[1])

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}".rstrip("/") if name else self._path

    def _info(self, what: Any) -> Any:
        try:
            return self._filesystem.get_file_info(self._full(what) if isinstance(what, str) else what)
        except OSError as error:
            raise StorageError(self.uri, _first_line(error)) from None

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(f"cannot write {name} to {self.uri}: {_first_line(error)}") from None


Place = Folder | Path | str


@lru_cache(maxsize=64)
def _open(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for a folder, and the folder's path in it."""
    if not _REMOTE.match(uri):
        return fs.LocalFileSystem(), uri
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"{uri} cannot be opened: {_first_line(error)}; use a path, s3:// or gs://") from None
    return filesystem, path


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
