"""Checkpoints: a folder of weights, training state and a JSON that says what they are.

    step_000250/
        model.safetensors   weights alone
        state.pt            optimiser and step, loadable with `weights_only=True`
        checkpoint.json     `CheckpointInfo`, with the sha256 of the other files

A checkpoint is written beside its final place, flushed, and renamed: one that exists is complete. Reading runs no code.
"""

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail import __version__
from vitrail.config import Recipe, Strict
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.predictor import Evaluation, Predictor
from vitrail.models.segmentor import Segmentor

FORMAT_VERSION = 1
WEIGHTS, STATE, INFO = "model.safetensors", "state.pt", "checkpoint.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints, and Ray Train's list of them."""


class DataSource(Strict):
    """Which data set a model was trained on."""

    name: str
    fingerprint: str


class ScoreRecord(Strict):
    """Scores of one validation, as fractions; `iou` per class, None for a class that never occurred."""

    mIoU: float  # noqa: N815 - the field's own spelling
    mAcc: float  # noqa: N815
    aAcc: float  # noqa: N815
    images: int
    iou: tuple[float | None, ...]


def score_record(evaluation: Evaluation) -> ScoreRecord:
    """Scores as a checkpoint keeps them: NaN becomes None, which JSON can hold."""
    scores = evaluation.matrix.scores()
    iou = tuple(None if value != value else float(value) for value in scores.iou)
    return ScoreRecord(mIoU=scores.miou, mAcc=scores.macc, aAcc=scores.aacc, images=evaluation.images, iou=iou)


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


def save_checkpoint(
    root: Path, info: CheckpointInfo, *, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint below `root` and return its folder, `step_<step>` or the first free name after it."""
    root.mkdir(parents=True, exist_ok=True)
    aside = root / f".writing-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, aside / WEIGHTS)
        torch.save(dict(state), aside / STATE)
        files = {name: file_sha256(aside / name) for name in (WEIGHTS, STATE)}
        versions = {"vitrail": __version__, "torch": torch.__version__}
        complete = info.model_copy(update={"files": files, "versions": versions})
        (aside / INFO).write_text(json.dumps(complete.model_dump(mode="json"), indent=1))
        for name in (*files, INFO):
            _flush(aside / name)
        folder = _free_name(root, info.step)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _flush(root)
    return folder


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
    for name, expected in info.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(str(folder), f"{name} is missing")
        if file_sha256(path) != expected:
            raise CheckpointError(str(folder), f"{name} does not match its checksum")
    return info


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


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The model's state dict, on the CPU."""
    return load_file(folder / WEIGHTS)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state: optimiser and step."""
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    return state


def load_segmentor(folder: Path) -> tuple[Segmentor, CheckpointInfo]:
    """The verified model in eval mode, and what it is. `state.pt` may be absent, as in a registered model."""
    info = read_info(folder)
    needed = {name: digest for name, digest in info.files.items() if name != STATE}
    verify(folder, info=info.model_copy(update={"files": needed}))
    model = Segmentor(info.recipe.model)
    model.load_state_dict(load_weights(folder))
    return model.eval(), info


def load_predictor(folder: Path, device: torch.device | str = "cpu") -> tuple[Predictor, CheckpointInfo]:
    """The checkpoint's model with its recipe's resize and inference around it."""
    model, info = load_segmentor(folder)
    return Predictor(model.to(device), info.recipe, device), info


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


def _free_name(root: Path, step: int) -> Path:
    """A name never used before: Ray keeps a list of checkpoints by name."""
    folder, attempt = root / f"step_{step:06d}", 0
    while folder.exists():
        attempt += 1
        folder = root / f"step_{step:06d}-{attempt}"
    return folder


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
