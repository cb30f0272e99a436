"""Folders that data sets lie in: on a disk, or in an object store through pyarrow's file systems.

    folder = Folder.at("s3://bucket/ade20k")      # or "gs://bucket/ade20k", or a path
    folder.read("manifest.json")

Names are relative to the folder and use `/`. A file that exists under its name is complete. Credentials and endpoints
come from the environment, as the store's own tools read them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …, or
`GOOGLE_APPLICATION_CREDENTIALS`); an endpoint may also stand in the URI, as pyarrow reads it:
`s3://bucket/x?endpoint_override=127.0.0.1%3A9000&scheme=http`, and `gs://anonymous@bucket/x` asks without credentials.
A store that does not answer is given up: S3 after pyarrow's three attempts, 6 s where connections are refused, and
Google's after 15 s of them, unless the URI says `retry_limit_seconds`.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import fs

from vitrail.data.files import make_writable, write_aside
from vitrail.errors import UsageError

_REMOTE = re.compile(r"^[a-z][a-z0-9+]+://", re.IGNORECASE)
_PIECE_BYTES = 8 << 20
_GOOGLES = ("gs://", "gcs://")
_GOOGLE_RETRY_S = 15
"""Google's library would try for 15 minutes."""
_GOOGLES_REASON = re.compile(
    r"google::cloud::Status\((\w+): (?:.*? with a last message of )?(.*?)(?: error_info=|\)$|$)"
)
_GONE = re.compile(r"AWS Error (NO_SUCH_KEY|RESOURCE_NOT_FOUND)")


class StorageError(UsageError):
    """An object store that cannot be reached, or refuses. No `DataError`: the data may well be sound, and a sample
    that could not be fetched must not be recorded as faulty."""

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
        _refuse_credentials(text)
        scheme, _, rest = text.partition("://")
        folder = cls(f"{scheme.lower()}://{rest.rstrip('/')}")
        _open(folder.uri)
        return folder

    def __str__(self) -> str:
        """The path or URI without its query, so that a file's name can follow; for people."""
        return self.uri if self.local else _shown(self.uri)

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
        same_store = self._filesystem.equals(other._filesystem)
        return same_store and f"{other._path}/".startswith(f"{self._path}/")

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            OSError: a file of this machine cannot be read; FileNotFoundError where there is none, here or in a store.
            StorageError: a store cannot be reached, or refuses.
        """
        return (self.local / name).read_bytes() if self.local is not None else b"".join(self._pieces(name))

    def sha256(self, name: str) -> str:
        """Hexadecimal sha256 of a file's bytes, read in pieces; raises as `read`."""
        digest = hashlib.sha256()
        for piece in self._pieces(name):
            digest.update(piece)
        return digest.hexdigest()

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to `path` on this machine, in pieces; raises as `read`, and OSError where `path` is refused."""
        with path.open("wb") as file:
            for piece in self._pieces(name):
                file.write(piece)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file whole.

        Raises:
            UsageError: the place cannot be written, or is full.
        """
        if self.local is not None:
            write_aside(self.local / name, data)
            return
        with self._refusals(f"write {name} to"), self._filesystem.open_output_stream(self._full(name)) as stream:
            stream.write(pa.py_buffer(data))  # becomes visible when the upload is complete

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of this machine to `name`, into an object store in pieces; raises as `write`."""
        if self.local is not None:
            write_aside(self.local / name, path.read_bytes())
            return
        open_stream = self._filesystem.open_output_stream
        with self._refusals(f"write {name} to"), path.open("rb") as file, open_stream(self._full(name)) as stream:
            while piece := file.read(_PIECE_BYTES):
                stream.write(piece)

    def size_bytes(self, name: str) -> int | None:
        """Size of a file, None where there is none."""
        found = self._info(name)
        return found.size if found.type == fs.FileType.File else None

    def is_folder(self, name: str = "") -> bool:
        """Whether there is a folder of that name: in an object store, anything below it."""
        return bool(self._info(name).type == fs.FileType.Directory)

    def files(self, name: str = "") -> list[Entry]:
        """The files directly in a folder, sorted by name; none where there is no folder."""
        return self._entries(name, fs.FileType.File)

    def folders(self, name: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted; none where there is no folder."""
        if not self.uri.startswith(_GOOGLES):
            return [entry.name for entry in self._entries(name, fs.FileType.Directory)]
        # pyarrow lists only the folders that it was told to make there, and files bring theirs along.
        below = self._info(fs.FileSelector(self._full(name), allow_not_found=True, recursive=True))
        parts = [info.path.removeprefix(f"{self._full(name)}/").split("/") for info in below]
        return sorted({first for first, *rest in parts if rest})

    def child(self, name: str) -> "Folder":
        """The folder of that name in this one."""
        place, mark, query = self.uri.partition("?") if self.local is None else (self.uri, "", "")
        return Folder(f"{place.rstrip('/')}/{name}{mark}{query}")

    def sibling(self, name: str) -> "Folder":
        """The folder of that name beside this one."""
        place, mark, query = self.uri.partition("?") if self.local is None else (self.uri, "", "")
        return Folder(f"{place.rpartition('/')[0]}/{name}{mark}{query}")

    def delete(self, name: str) -> None:
        """Delete a file; none need be there."""
        if self.size_bytes(name) is not None:
            with self._refusals(f"delete {name} from"):
                self._filesystem.delete_file(self._full(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it; none need be there. Not at once: readers may see a part of it."""
        with self._refusals(f"delete {name} from"), suppress(FileNotFoundError):
            try:
                self._filesystem.delete_dir(self._full(name))
            except OSError:
                if self.is_folder(name):  # Google's has no word of its own for one that is not there
                    raise

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
            raise StorageError(str(self), _first_line(error)) from None

    def _entries(self, name: str, kind: Any) -> list[Entry]:
        infos = self._info(fs.FileSelector(self._full(name), allow_not_found=True))
        try:
            found = [Entry(info.base_name, info.size or 0, info.mtime_ns or 0) for info in infos if info.type == kind]
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self}/{name} has a file whose name is not UTF-8 ({error.object!r}); rename it"
            ) from None
        return sorted(found, key=lambda entry: entry.name)

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._filesystem.open_input_stream(self._full(name)) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    yield piece
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.local is not None:
                raise
            if _GONE.search(str(error)):  # deleted between pyarrow's look and its read
                raise FileNotFoundError(f"{self}/{name}") from None
            raise StorageError(f"{self}/{name}", _first_line(error)) from None

    @contextmanager
    def _refusals(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(f"cannot {action} {self}: {_first_line(error)}") from None


Place = Folder | Path | str


@lru_cache(maxsize=64)
def _open(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for a folder, and the folder's path in it."""
    if not _REMOTE.match(uri):
        return fs.LocalFileSystem(), uri
    if "#" in uri:  # pyarrow drops a fragment without a word, and would open another folder
        raise UsageError(f"{_shown(uri).partition('#')[0]}#… has a # in it, which a URI writes as %23")
    try:
        filesystem, path = fs.FileSystem.from_uri(_patient(uri))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = _first_line(error).replace(_patient(uri), _shown(uri))  # a query may hold what is not for logs
        raise UsageError(f"{_shown(uri)} cannot be opened: {reason}; use a path, s3:// or gs://") from None
    except OSError as error:  # S3 is asked for the bucket's region where no endpoint is named
        raise StorageError(_shown(uri), _first_line(error)) from None
    if not path.strip("/"):
        raise UsageError(f"{uri} names no bucket; expected SCHEME://BUCKET/FOLDER")
    return filesystem, path.rstrip("/")


def _patient(uri: str) -> str:
    """The URI for pyarrow, which has to be told for how long to try again."""
    if not uri.startswith(_GOOGLES) or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={_GOOGLE_RETRY_S}"


def _refuse_credentials(uri: str) -> None:
    """A secret key may hold `/`, so that its `@` is not always in what a parser takes for the host."""
    scheme, _, rest = uri.partition("://")
    if f"{scheme.lower()}://" in _GOOGLES:
        rest = rest.removeprefix("anonymous@")  # the name for nobody
    host, _, path = rest.partition("?")[0].partition("/")
    if "@" in host or (":" in host and "@" in path):
        raise UsageError(
            f"{scheme}://…@{rest.partition('?')[0].rpartition('@')[2]} has credentials in it, which would end in logs "
            "and job metadata; leave them out and set the environment (AWS_ACCESS_KEY_ID, …)"
        )


def _shown(uri: str) -> str:
    return uri.partition("?")[0].rstrip("/")


def _first_line(error: Exception) -> str:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    google = _GOOGLES_REASON.search(line)
    return f"Google Error {google[1]}: {google[2]}" if google else line
