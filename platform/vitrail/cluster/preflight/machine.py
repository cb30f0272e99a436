"""What a machine of a cluster answers to the probe of a dry run: whether it reaches what the job will need."""

import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from vitrail.benchmark.record import describe_machine
from vitrail.cluster.preflight.facts import Answer, Question
from vitrail.data.manifest import Manifest
from vitrail.data.shard_cache import cache_folder
from vitrail.data.storage import Folder
from vitrail.errors import DataError, VitrailError
from vitrail.models.hub_files import PretrainedUnavailableError, check_available
from vitrail.tracking.environment import TrackingError
from vitrail.tracking.reachable import TrackingRefusedError, check_reachable

_OF_ONE_REQUEST = re.compile(r" \(Request ID: [^)]*\)|\.probe-[0-9a-f]+ (?=to )")
"""What makes the same trouble read differently on every machine."""


def answer(question: Question) -> Answer:
    """This machine's answer."""
    machine = describe_machine()
    cache = cache_folder()
    data_error, fingerprint = _data(question.data)
    tracking_error, refused = _tracking(question.tracking_uri)
    return Answer(
        cpu=machine["cpu"],
        cores=machine["cores"],
        gpus=tuple(gpu_names()),
        versions=package_versions(question.packages),
        data_error=data_error,
        data_fingerprint=fingerprint,
        tracking_error=tracking_error,
        tracking_refused=refused,
        weights_error=_error_of(lambda: _check_weights(question)),
        checkpoints_error=_error_of(lambda: check_writable(question.checkpoints)),
        unshared=tuple(folder for folder, mark in question.marks.items() if not Path(mark).is_file()),
        cache=str(cache),
        cache_free_bytes=shutil.disk_usage(nearest_folder(cache)).free,
    )


def needed_packages() -> tuple[str, ...]:
    """Names of the packages that this installation of vitrail asks for by itself."""
    asked = [line for line in requires("vitrail") or [] if "extra ==" not in line]
    return tuple(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in asked)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those packages that this machine has."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in names:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def gpu_names() -> list[str]:
    """Names of this machine's GPUs; none where there is no NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def nearest_folder(path: Path) -> Path:
    """The path, or the closest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def check_writable(place: str | None) -> None:
    """Write a file where checkpoints would go, or to the closest folder that is there, and delete it.

    Raises:
        OSError, UsageError: it is refused.
    """
    if place is None:
        return
    folder = Folder.at(place)
    if folder.local is None:
        folder.make_writable()
        return
    with mark_in(folder.local):
        pass


@contextmanager
def mark_in(folder: Path) -> Iterator[Path]:
    """A file in a folder, or in the closest above it that is there, until the block ends."""
    mark = nearest_folder(folder) / f".vitrail-{uuid.uuid4().hex[:12]}"
    mark.write_bytes(b"")
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _data(place: str | None) -> tuple[str | None, str | None]:
    """Why the data set cannot be read, or its fingerprint: its manifest, and that one shard of each split is there."""
    if not place:
        return None, None
    try:
        folder, manifest = Folder.at(place), Manifest.load(place)
        for split in manifest.splits.values():
            for shard in split.shards[:1]:
                found = folder.size_bytes(shard.path)
                if found != shard.size_bytes:
                    what = "is not there" if found is None else f"has {found} bytes"
                    raise DataError(f"{folder}/{shard.path} {what}, and the manifest lists {shard.size_bytes} bytes")
    except (VitrailError, OSError) as error:
        return _text(error), None
    return None, manifest.fingerprint


def _tracking(tracking_uri: str | None) -> tuple[str | None, bool]:
    """Why MLflow cannot be used, and whether that is for want of credentials."""
    try:
        check_reachable(tracking_uri or "")
    except TrackingError as error:
        return _text(error), isinstance(error, TrackingRefusedError)
    return None, False


def _check_weights(question: Question) -> None:
    name = question.pretrained
    if name is None or Path(name).exists():
        return
    if question.repository is None:
        raise DataError(f"there is no file {name!r}")
    check_available(name, question.repository)


def _error_of(check: Callable[[], None]) -> str | None:
    try:
        check()
    except (VitrailError, OSError) as error:
        return _text(error)
    return None


def _text(error: Exception) -> str:
    if isinstance(error, TrackingError):
        return error.reason
    if isinstance(error, PretrainedUnavailableError):
        return f"{error.name} is not in the hub's cache, and {error.repository} cannot be reached ({error.reason})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(_OF_ONE_REQUEST.sub("", str(error)).split()) or type(error).__name__
