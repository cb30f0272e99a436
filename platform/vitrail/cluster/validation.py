"""Validating beside training: what Ray Train runs on spare resources for a checkpoint that was just written.

The task scores the checkpoint and writes that into it; rank 0 of the workers, which alone writes to MLflow, hears of it
through the run's board.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from vitrail.checkpoint_store import CheckpointStore, StoredCheckpoint
from vitrail.cluster.board import RunBoard
from vitrail.config import RunConfig
from vitrail.data.manifest import Manifest
from vitrail.data.shards import ShardReader
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.pictures import Pixels, prediction_panel
from vitrail.evaluation.predictor import Evaluation, Predictor
from vitrail.evaluation.split import evaluate_split
from vitrail.models.restored import restore_segmentor
from vitrail.training.checkpoint import score_record
from vitrail.training.step import autocast

_POINTER = "checkpoint_at.json"
_NUM_PICTURES = 4


@dataclass(frozen=True)
class ValidationFailed:
    """Why a checkpoint could not be scored; training goes on."""

    step: int
    reason: str


@dataclass(frozen=True)
class Validated:
    """What a validation found out; `counts` is the confusion matrix, int64 on the CPU."""

    step: int
    counts: torch.Tensor
    images: int
    panels: dict[str, Pixels] = field(default_factory=dict)

    @property
    def evaluation(self) -> Evaluation:
        """As a validation by the workers themselves would have returned it."""
        matrix = ConfusionMatrix(self.counts.shape[1])
        matrix.counts += self.counts
        return Evaluation(matrix, self.images)


def validate_checkpoint(checkpoint: ray.train.Checkpoint, *, config: dict[str, Any], board: RunBoard) -> dict[str, Any]:
    """Score the checkpoint that `checkpoint` points to, tell the board, and return the summary for Ray Train's list."""
    run = RunConfig.model_validate(config)
    step, name = _pointed_at(checkpoint)
    try:
        return _validate(run, name, board)
    except Exception as error:
        board.post_result(ValidationFailed(step, f"{type(error).__name__}: {error}"))
        raise


def _validate(run: RunConfig, name: str, board: RunBoard) -> dict[str, Any]:
    store = CheckpointStore.at(run.checkpoints)
    stored = StoredCheckpoint.at(store.root.child(name))
    torch.set_num_threads(run.cpus_per_worker)
    predictor = _predictor(run, stored.fetch(state=False), "cuda" if ray.get_gpu_ids() else "cpu")
    reader, classes = ShardReader(run.data, "validation"), run.recipe.model.num_classes
    evaluation = evaluate_split(predictor, reader, classes, threads=max(1, run.cpus_per_worker - 1))
    scores = score_record(evaluation.matrix.scores(), evaluation.images)
    store.add_scores(name, scores)
    counts, panels = evaluation.matrix.counts.cpu(), draw_panels(run, predictor)
    board.post_result(Validated(stored.info.step, counts, evaluation.images, panels))
    return {"step": stored.info.step, "mIoU": scores.mIoU}


def draw_checkpoint(run: RunConfig, folder: Path) -> dict[str, Pixels]:
    """The panels of `draw_panels` by the run's checkpoint in `folder`, on a GPU where this process has one."""
    return draw_panels(run, _predictor(run, folder, "cuda" if torch.cuda.is_available() else "cpu"))


def _predictor(run: RunConfig, folder: Path, device: str) -> Predictor:
    segmentor, _ = restore_segmentor(folder)
    context = partial(autocast, device, run.compute.precision)
    return Predictor(segmentor.to(device), run.recipe, device, autocast=context)


def draw_panels(run: RunConfig, predictor: Predictor) -> dict[str, Pixels]:
    """What the model makes of a few validation images, always the same ones, by their ids."""
    reader, manifest = ShardReader(run.data, "validation"), Manifest.load(run.data)
    count = min(_NUM_PICTURES, len(reader))
    samples = [reader[len(reader) * k // count] for k in range(count)]
    return {
        sample.id: prediction_panel(
            sample.image, sample.label, predictor(sample.image), manifest.palette, manifest.classes
        )
        for sample in samples
    }


def point_to(saved: StoredCheckpoint) -> ray.train.Checkpoint:
    """What Ray Train keeps of a checkpoint: where it is. The checkpoint itself it could only keep or delete by rules of
    its own, and it refuses to go on with a run that lacks one it knows."""
    storage = ray.train.get_context().get_storage()
    place, files = f"{storage.experiment_fs_path}/{saved.name}", storage.storage_filesystem
    files.create_dir(place)
    with files.open_output_stream(f"{place}/{_POINTER}") as stream:
        stream.write(json.dumps({"checkpoint": str(saved), "name": saved.name, "step": saved.info.step}).encode())
    return ray.train.Checkpoint(place, filesystem=files)


def _pointed_at(checkpoint: ray.train.Checkpoint) -> tuple[int, str]:
    """Step and name of the checkpoint that `point_to` noted."""
    with checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{_POINTER}") as stream:
        noted = json.loads(stream.read())
    return noted["step"], noted["name"]
