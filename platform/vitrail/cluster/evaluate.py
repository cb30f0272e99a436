"""Scoring a trained model on a split, its images dealt out to several workers and counted once each."""

from collections.abc import Sequence

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vitrail.checkpoint import ScoreRecord
from vitrail.cluster.runtime import check_feasible, cpu_share
from vitrail.config import Recipe
from vitrail.data.manifest import Manifest
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder, Place
from vitrail.errors import UsageError
from vitrail.evaluation.image_counts import ImageCounts
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.split import ImageCountError, count_images
from vitrail.evaluation.trained import TrainedModel
from vitrail.models.segmentor import Segmentor


def evaluate_model(
    model: Segmentor,
    described: TrainedModel,
    data: Place,
    *,
    split: str = "validation",
    ms_flip: bool = False,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
) -> ImageCounts:
    """Counts, over all images of a split of the data set at `data`, of a model as `open_model` gives it.

    Ray must be started.

    Raises:
        UsageError: the data set has other classes than the model.
    """
    manifest = Manifest.load(data)
    refuse_other_classes(described, manifest, data)
    cpus = cpu_share(workers, on_gpu_machines=gpus_per_worker > 0)
    check_feasible(workers, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker)
    task = ray.remote(_count_share).options(num_cpus=cpus, num_gpus=gpus_per_worker)
    what = (ray.put((model, described.recipe)), Folder.at(data).uri, split)
    parts = [task.remote(*what, rank=rank, workers=workers, threads=cpus, ms_flip=ms_flip) for rank in range(workers)]
    areas = {index: counts for part in ray.get(parts) for index, counts in part.items()}
    if sorted(areas) != list(range(expected := manifest.split(split).num_samples)):
        raise ImageCountError(len(areas), expected)
    return ImageCounts.of_areas(ShardReader(data, split).ids, areas)


def print_scores(described: TrainedModel, classes: Sequence[str], record: ScoreRecord) -> None:
    """Print the summary and every class's IoU, with the published figures beside where the recipe has them."""
    console = Console()
    console.print(f"{described.title}, {record.images} images")
    published = _published(described.recipe)
    console.print(f"mIoU {record.mIoU:.2%}  mAcc {record.mAcc:.2%}  aAcc {record.aAcc:.2%}{published}")
    table = Table("class", "IoU")
    for name, iou in zip(classes, record.iou, strict=True):
        table.add_row(name, "never seen" if iou is None else f"{iou:.2%}")
    console.print(table)


def refuse_other_classes(described: TrainedModel, manifest: Manifest, data: Place) -> None:
    """Raise a `UsageError` unless the model's labels mean what the data set's do."""
    count = described.recipe.model.num_classes
    if described.classes is None and count == manifest.num_classes:
        return
    if described.classes != manifest.classes:
        names = f"({', '.join(described.classes[:3])}, …)" if described.classes else "of unknown names"
        raise UsageError(
            f"{described.title} has {count} classes {names} and {data} "
            f"has {manifest.num_classes} ({', '.join(manifest.classes[:3])}, …)"
        )


def _published(recipe: Recipe) -> str:
    figures = recipe.published
    return f"  (published: {figures.miou}, with ms+flip {figures.miou_ms_flip})" if figures else ""


def _count_share(
    trained: tuple[Segmentor, Recipe], data: str, split: str, *, rank: int, workers: int, threads: int, ms_flip: bool
) -> dict[int, NDArray[np.int64]]:
    """One worker's share of the images."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, recipe = trained
    return count_images(
        Predictor(model.to(device), recipe, device, ms_flip=ms_flip),
        ShardReader(data, split),
        recipe.model.num_classes,
        rank=rank,
        world_size=workers,
        # Beside a GPU the CPUs have nothing else to do; on a CPU they are the network's.
        threads=max(1, threads - 1) if device == "cuda" else 1,
    )
