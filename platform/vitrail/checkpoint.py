"""What a checkpoint is: its folder's layout, its description, and its checksums. No torch is needed to read it.

step_000250/
    model.safetensors   weights alone
    state.pt            optimiser and step, loadable with `weights_only=True`; absent from registered models
    checkpoint.json     `CheckpointInfo`, with the sha256 of the other files
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vitrail.config import Recipe, Strict
from vitrail.errors import DataError, UsageError

FORMAT_VERSION = 1
WEIGHTS, STATE, INFO = "model.safetensors", "state.pt", "checkpoint.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints, and Ray Train's list of them."""


class DataSource(Strict):
    """Which data set a model was trained on."""

    name: str
    fingerprint: str
    val_images: int
    """Size of its whole validation split."""


class ScoreRecord(Strict):
    """Scores of one validation, as fractions; `iou` per class, None for a class that never occurred."""

    mIoU: float  # noqa: N815 - the field's own spelling
    mAcc: float  # noqa: N815
    aAcc: float  # noqa: N815
    images: int
    iou: tuple[float | None, ...]


class CheckpointInfo(Strict):
    """What a checkpoint holds and where it came from."""

    format_version: int = FORMAT_VERSION
    step: int
    recipe: Recipe
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    reduce_zero_label: bool
    data: DataSource
    seed: int
    run_key: str
    scores: ScoreRecord | None = None
    start: dict[str, Any] | None = None
    """Which weights training started from: source, sha256 and coverage; None for random weights."""
    versions: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


class CheckpointError(DataError):
    """A checkpoint that is incomplete, damaged, or of another format."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"checkpoint {self.folder} cannot be used: {self.reason}"


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint in `folder` is.

    Raises:
        UsageError: there is no checkpoint at that place.
        CheckpointError: its JSON is damaged or of a newer format.
    """
    path = folder / INFO
    if not path.is_file():
        raise UsageError(f"{folder} is not a checkpoint: it has no {INFO}")
    try:
        values = json.loads(path.read_text())
        if values.get("format_version", 0) > FORMAT_VERSION:
            found = values["format_version"]
            raise CheckpointError(str(folder), f"format {found} is newer than {FORMAT_VERSION}; update vitrail")
        return CheckpointInfo.model_validate(values)
    except (ValueError, ValidationError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(str(folder), f"{INFO} is damaged ({type(error).__name__})") from error


def verify(folder: Path, *, info: CheckpointInfo | None = None) -> CheckpointInfo:
    """Check every file against its sha256, and return what the checkpoint is; raises `CheckpointError`."""
    info = info or read_info(folder)
    check_files(folder, info.files)
    return info


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raise a `CheckpointError` unless `folder` has every one of `files` with its sha256."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(str(folder), f"{name} is missing")
        if file_sha256(path) != expected:
            raise CheckpointError(str(folder), f"{name} has changed: {name} does not match its checksum")


def latest_checkpoint(root: Path) -> Path | None:
    """The complete and undamaged checkpoint of the highest step below `root`; damaged ones are warned of and passed."""
    found = [(info.step, folder.stat().st_mtime_ns, folder) for folder, info in _readable(root)]
    for _, _, folder in sorted(found, reverse=True):
        try:
            verify(folder)
        except CheckpointError as error:
            warnings.warn(f"{error}; using the one before it", stacklevel=2)
            continue
        return folder
    return None


def best_checkpoint(root: Path) -> Path | None:
    """The checkpoint of the highest mIoU below `root`, the later one among equals."""
    scored = [(info.scores.mIoU, info.step, folder) for folder, info in _readable(root) if info.scores is not None]
    return max(scored, default=(0.0, 0, None))[2]


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable(root: Path) -> list[tuple[Path, CheckpointInfo]]:
    pairs = []
    for folder in root.glob("step_*"):
        try:
            pairs.append((folder, read_info(folder)))
        except (CheckpointError, UsageError) as error:
            warnings.warn(str(error), stacklevel=3)
    return pairs
