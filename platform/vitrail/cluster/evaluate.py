"""Scoring a checkpoint on a split, its images dealt out to several workers and counted once each."""

from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from vitrail.checkpoint import ScoreRecord, read_info
from vitrail.cluster.runtime import check_feasible, cpu_share
from vitrail.config import Recipe
from vitrail.data.manifest import Manifest
from vitrail.data.shards import ShardReader
from vitrail.errors import UsageError
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.predictor import Evaluation, evaluate
from vitrail.training.checkpoint import load_predictor, score_record


def evaluate_model(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "validation",
    ms_flip: bool = False,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
) -> ScoreRecord:
    """Scores of `checkpoint` on a split of the data set at `data`; Ray must be started.

    Raises:
        UsageError: the data set has other classes than the model.
    """
    info, manifest = read_info(checkpoint), Manifest.load(data)
    if manifest.classes != info.classes:
        raise UsageError(
            f"{checkpoint} was trained on {len(info.classes)} classes ({', '.join(info.classes[:3])}, …) and {data} "
            f"has {manifest.num_classes} ({', '.join(manifest.classes[:3])}, …)"
        )
    manifest.split(split)
    cpus = cpu_share(workers)
    check_feasible(workers, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker)
    task = ray.remote(_count_slice).options(num_cpus=cpus, num_gpus=gpus_per_worker)
    where = (str(checkpoint.resolve()), str(data.resolve()), split)
    parts = [task.remote(*where, rank=rank, workers=workers, threads=cpus, ms_flip=ms_flip) for rank in range(workers)]
    total = Evaluation(ConfusionMatrix(manifest.num_classes))
    for counts, images in ray.get(parts):
        total.matrix.counts += torch.tensor(counts)  # a copy: Ray's arrays are read-only
        total.images += images
    return score_record(total)


def print_scores(info_of: Path, record: ScoreRecord) -> None:
    """Print the summary and every class's IoU, with the published figures beside where the recipe has them."""
    info = read_info(info_of)
    console = Console()
    console.print(f"{info.recipe.name}, step {info.step}, {record.images} images")
    console.print(f"mIoU {record.mIoU:.2%}  mAcc {record.mAcc:.2%}  aAcc {record.aAcc:.2%}{_published(info.recipe)}")
    table = Table("class", "IoU")
    for name, iou in zip(info.classes, record.iou, strict=True):
        table.add_row(name, "never seen" if iou is None else f"{iou:.2%}")
    console.print(table)


def _published(recipe: Recipe) -> str:
    figures = recipe.published
    return f"  (published: {figures.miou}, with ms+flip {figures.miou_ms_flip})" if figures else ""


def _count_slice(
    checkpoint: str, data: str, split: str, *, rank: int, workers: int, threads: int, ms_flip: bool
) -> tuple[Any, int]:
    """Every `workers`-th image from `rank` on: counts as an array (K + 1, K), and how many images they were."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor, info = load_predictor(Path(checkpoint), device, ms_flip=ms_flip)
    reader = ShardReader(Path(data), split)
    samples = (reader[index] for index in range(rank, len(reader), workers))
    evaluation = evaluate(predictor, ((sample.image, sample.label) for sample in samples), len(info.classes))
    return evaluation.matrix.counts.numpy(), evaluation.images
