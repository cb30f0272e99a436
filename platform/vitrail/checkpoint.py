"""What a checkpoint is: its folder's layout, its description, and its checksums. No torch is needed to read it.

step_000250/
    model.safetensors   weights alone
    state.pt            optimiser, step and the like, loadable with `weights_only=True`; absent from registered models
    checkpoint.json     `CheckpointInfo`, with the sha256 of the other files

`vitrail.checkpoint_store` keeps many of them in a folder or an object store.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from vitrail.config import Recipe
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.strict import Strict

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
    uri: str | None = None
    """Where it lay, without credentials; None in checkpoints of older versions."""


class ScoreRecord(Strict):
    """Scores of one validation, as fractions; `iou` per class, None for a class that never occurred."""

    mIoU: float  # noqa: N815 - the field's own spelling
    mAcc: float  # noqa: N815
    aAcc: float  # noqa: N815
    images: int
    iou: tuple[float | None, ...]


class BestScore(Strict):
    """The highest validation score of a run so far, and the step that had it."""

    mIoU: float  # noqa: N815
    step: int


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
    validating: bool = False
    """Whether a validation beside training is to fill in `scores`; until then it is kept."""
    best: BestScore | None = None
    """Of the run up to this step; None before the first validation, and in checkpoints of older versions."""
    mlflow_run_id: str | None = None
    start: dict[str, Any] | None = None
    """Which weights training started from: source, sha256 and coverage; None for random weights."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of `vitrail` and `torch`; and `code`, the revision of the sources (`vitrail.revision`)."""
    files: dict[str, str] = Field(default_factory=dict)
    """The sha256 of each of its files; a checkpoint has no folders."""

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not stays_inside(name) or "/" in name:
                raise ValueError(f"{name!r} is not the name of a file in the checkpoint")
        return files


class CheckpointError(DataError):
    """A checkpoint that is incomplete, damaged, or of another format."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"checkpoint {self.folder} cannot be used: {self.reason}"


class CheckpointWriteError(VitrailError):
    """A checkpoint that could not be written: a full disk, or a store that refuses. Those before it stay good."""

    def __init__(
        self,
        place: str,
        step: int,
        reason: str,
        needed_bytes: int | None = None,
        available_bytes: int | None = None,
        last_good: str | None = None,
    ) -> None:
        super().__init__(place, step, reason, needed_bytes, available_bytes, last_good)
        self.place, self.step, self.reason = place, step, reason
        self.needed_bytes, self.available_bytes, self.last_good = needed_bytes, available_bytes, last_good

    def __str__(self) -> str:
        needs = "" if self.needed_bytes is None else f"; it needs {_megabytes(self.needed_bytes)}"
        has = "" if self.available_bytes is None else f"; {_megabytes(self.available_bytes)} are free there"
        kept = f"{self.last_good}, the last good one, is untouched" if self.last_good else "no earlier one was touched"
        return (
            f"the checkpoint of step {self.step} cannot be written to {self.place}: {self.reason}{needs}{has}. "
            f"Nothing of it was left, and {kept}; make room or put the place right, then continue with --resume"
        )


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint in `folder` is.

    Raises:
        UsageError: there is no checkpoint at that place.
        CheckpointError: its JSON is damaged or of a newer format.
    """
    path = folder / INFO
    if not path.is_file():
        raise UsageError(f"{folder} is not a checkpoint: it has no {INFO}")
    return parse_info(path.read_bytes(), str(folder))


def parse_info(data: bytes, place: str) -> CheckpointInfo:
    """What the bytes of a `checkpoint.json` say; raises a `CheckpointError` that names `place`."""
    try:
        values = json.loads(data)
        if values.get("format_version", 0) > FORMAT_VERSION:
            found = values["format_version"]
            raise CheckpointError(place, f"format {found} is newer than {FORMAT_VERSION}; update vitrail")
        return CheckpointInfo.model_validate(values)
    except (ValueError, AttributeError, ValidationError) as error:
        raise CheckpointError(place, f"{INFO} is damaged ({type(error).__name__})") from error


def info_bytes(info: CheckpointInfo) -> bytes:
    """What `parse_info` reads."""
    return json.dumps(info.model_dump(mode="json"), indent=1).encode()


def verify(folder: Path, *, info: CheckpointInfo | None = None) -> CheckpointInfo:
    """Check every file against its sha256, and return what the checkpoint is; raises `CheckpointError`."""
    info = info or read_info(folder)
    check_files(folder, info.files)
    return info


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raise a `CheckpointError` unless `folder` has every one of `files` with its sha256."""
    for name, expected in files.items():
        if not stays_inside(name):
            raise CheckpointError(str(folder), f"{name!r} is listed in it and would lie outside")
        try:
            found = file_sha256(folder / name)
        except FileNotFoundError:
            raise CheckpointError(str(folder), f"{name} is missing") from None
        except OSError as error:
            raise CheckpointError(str(folder), f"{name} cannot be read ({error.strerror})") from error
        if found != expected:
            raise CheckpointError(str(folder), f"{name} has changed: {name} does not match its checksum")


def stays_inside(name: str) -> bool:
    """Whether a name that somebody else wrote is that of a file in the folder that it is relative to."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not set(name) & set("\\\0")


def superseded(scored: Mapping[str, tuple[int, float | None]], *, newest: int, best: int) -> list[str]:
    """Names of the checkpoints that are neither among the `newest` nor among the `best`, oldest first.

    `scored` maps names to (step, score), in the order of saving; one without a score (None, NaN) is never among the
    best. Of equal scores the later is better, and of equal steps the one saved later is newer.
    """
    if newest < 1 or best < 0:
        raise ValueError(f"newest={newest} must be at least 1 and best={best} at least 0")
    by_step = sorted(scored, key=lambda name: scored[name][0])
    scores = {name: score for name in by_step if (score := scored[name][1]) is not None and not math.isnan(score)}
    worst_first = sorted(scores, key=scores.__getitem__)
    kept = {*by_step[-newest:], *worst_first[::-1][:best]}
    return [name for name in by_step if name not in kept]


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
