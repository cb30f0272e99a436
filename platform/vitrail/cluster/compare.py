"""Two models side by side on the same images: scores, classes, and the images on which they disagree most."""

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath

import cv2
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vitrail.cluster.evaluate import refuse_other_classes
from vitrail.cluster.runtime import check_feasible, cpu_share
from vitrail.config import IGNORE_INDEX
from vitrail.data.manifest import Manifest
from vitrail.data.shards import ShardReader
from vitrail.data.storage import Folder, Place
from vitrail.evaluation.dealing import deal_batches
from vitrail.evaluation.image_counts import ImageCounts
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.pictures import disagreement_panel
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.split import ImageCountError, PredictedImage, predict_batches
from vitrail.evaluation.trained import TrainedModel
from vitrail.gate.bootstrap import Differences, Interval, paired_differences
from vitrail.models.segmentor import Segmentor

Trained = tuple[Segmentor, TrainedModel]
"""What `open_model` returns."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two models make of the same images; differences are the first's scores less the second's."""

    classes: tuple[str, ...]
    first: ImageCounts
    second: ImageCounts
    differences: Differences
    disagreement: NDArray[np.float64]
    """(N,) share of each image's pixels that the two give different classes"""

    def most_disputed(self, count: int) -> list[int]:
        """Indices of the images with the largest disagreement, of those with any."""
        order = np.argsort(-self.disagreement, kind="stable")[:count]
        return [int(index) for index in order if self.disagreement[index] > 0]


def compare_models(
    first: Trained,
    second: Trained,
    data: Place,
    *,
    split: str = "validation",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
) -> Comparison:
    """Both models on all images of a split, image by image; Ray must be started.

    Raises:
        UsageError: the data set has other classes than one of the models.
    """
    manifest = Manifest.load(data)
    for _, described in (first, second):
        refuse_other_classes(described, manifest, data)
    cpus = cpu_share(workers, on_gpu_machines=gpus_per_worker > 0)
    check_feasible(workers, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker)
    task = ray.remote(_compare_share).options(num_cpus=cpus, num_gpus=gpus_per_worker)
    what = (ray.put((first, second)), Folder.at(data).uri, split)
    parts = ray.get([task.remote(*what, rank=rank, workers=workers, threads=cpus) for rank in range(workers)])
    areas = [{index: each[number] for part in parts for index, each in part.items()} for number in range(3)]
    if sorted(areas[0]) != list(range(expected := manifest.split(split).num_samples)):
        raise ImageCountError(len(areas[0]), expected)
    ids = ShardReader(data, split).ids
    counts = [ImageCounts.of_areas(ids, areas[number]) for number in range(2)]
    return Comparison(
        classes=manifest.classes,
        first=counts[0],
        second=counts[1],
        differences=paired_differences(*counts),
        disagreement=np.array([float(areas[2][index]) for index in range(expected)]),
    )


def print_comparison(comparison: Comparison, first: str, second: str) -> None:
    """Print both models' scores, how sure their difference is, and the classes, the largest difference first."""
    console = Console()
    scores = [comparison.first.scores(), comparison.second.scores()]
    table = Table("", "mIoU", "mAcc", "aAcc")
    for name, score in zip((first, second), scores, strict=True):
        table.add_row(name, f"{score.miou:.2%}", f"{score.macc:.2%}", f"{score.aacc:.2%}")
    console.print(table)
    gain = _points(comparison.differences.miou_interval())
    console.print(f"over {len(comparison.first)} images, mIoU differs by {gain} points with 95 % confidence")
    intervals = comparison.differences.iou_intervals()
    known = [index for index, interval in enumerate(intervals) if not math.isnan(interval.estimate)]
    table = Table("class", "IoU of the first", "of the second", "difference, points [95 % interval]")
    for index in sorted(known, key=lambda index: -abs(intervals[index].estimate)):
        figures = [f"{score.iou[index]:.2%}" for score in scores]
        table.add_row(comparison.classes[index], *figures, _points(intervals[index]))
    console.print(table)


def _points(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.estimate:+.2f} [{low:+.2f}, {high:+.2f}]"


def write_disputed(
    comparison: Comparison, first: Trained, second: Trained, data: Place, out: Place, *, split: str, count: int
) -> list[str]:
    """Write pictures of the images on which the two disagree most, computed on the CPU; returns their places.

    Each shows the image, the truth, and both models' labels.
    """
    folder = Folder.at(out)
    folder.make_writable()
    reader, manifest = ShardReader(data, split), Manifest.load(data)
    predictors = [Predictor(model, described.recipe) for model, described in (first, second)]
    written = []
    for place, index in enumerate(comparison.most_disputed(count), start=1):
        sample = reader[index]
        one, other = (predictor(sample.image) for predictor in predictors)
        panel = disagreement_panel(sample.image, sample.label, one, other, manifest.palette, manifest.classes)
        ok, encoded = cv2.imencode(".jpg", cv2.cvtColor(panel, cv2.COLOR_RGB2BGR))
        assert ok
        name = f"{place:02d}-{PurePosixPath(sample.id).name}.jpg"
        folder.write(name, encoded.tobytes())
        written.append(f"{folder}/{name}")
    return written


def _compare_share(
    models: tuple[Trained, Trained], data: str, split: str, *, rank: int, workers: int, threads: int
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64], float]]:
    """One worker's share of the images: both models' areas (3, K), and the share of pixels that they disagree on."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = ShardReader(data, split)
    results = {}
    with (
        closing(_predicted(models[0], reader, device, rank, workers)) as first,
        closing(_predicted(models[1], reader, device, rank, workers)) as second,
    ):
        for one, other in zip(first, second, strict=True):
            assert one.index == other.index
            counted = one.label != IGNORE_INDEX
            differs = ((one.prediction != other.prediction) & counted).sum() / counted.sum().clamp(min=1)
            areas = [_areas(image, reader.manifest.num_classes) for image in (one, other)]
            results[one.index] = (areas[0], areas[1], float(differs))
    return results


def _predicted(
    trained: Trained, reader: ShardReader, device: str, rank: int, workers: int
) -> Generator[PredictedImage]:
    """One image at a time: models of different test scales would share no larger batches."""
    model, described = trained
    predictor = Predictor(model.to(device), described.recipe, device)
    batches = deal_batches(reader.sizes, lambda size: [size], world_size=workers, max_pixels=1, max_images=1)
    return predict_batches(predictor, reader, batches[rank])


def _areas(image: PredictedImage, num_classes: int) -> NDArray[np.int64]:
    matrix = ConfusionMatrix(num_classes, device=image.prediction.device)
    matrix.update(image.prediction, image.label)
    areas: NDArray[np.int64] = matrix.areas().cpu().numpy()
    return areas
