"""Writing and loading checkpoints: see `vitrail.checkpoint` for what they are.

A checkpoint is written beside its final place, flushed, and renamed: one that exists is complete. Loading runs no code.
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail import __version__
from vitrail.checkpoint import INFO, STATE, WEIGHTS, CheckpointInfo, ScoreRecord, file_sha256
from vitrail.evaluation.predictor import Evaluation


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


def score_record(evaluation: Evaluation) -> ScoreRecord:
    """Scores as a checkpoint keeps them: NaN becomes None, which JSON can hold."""
    scores = evaluation.matrix.scores()
    iou = tuple(None if value != value else float(value) for value in scores.iou)
    return ScoreRecord(mIoU=scores.miou, mAcc=scores.macc, aAcc=scores.aacc, images=evaluation.images, iou=iou)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The model's state dict, on the CPU."""
    return load_file(folder / WEIGHTS)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state: optimiser and step."""
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    return state


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
