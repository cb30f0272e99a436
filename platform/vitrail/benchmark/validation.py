"""How long scoring a split takes: in batches, decoded ahead and counted on the device, against one image at a time."""

from typing import Any

import torch

from vitrail.benchmark.record import Timing, median_ratio
from vitrail.config import Recipe
from vitrail.data.shards import ShardReader
from vitrail.evaluation.dealing import MAX_BATCH_PIXELS, deal_batches
from vitrail.evaluation.predictor import Evaluation, Predictor, evaluate
from vitrail.evaluation.split import evaluate_split
from vitrail.models.segmentor import Segmentor


def measure_validation(
    reader: ShardReader,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    repeats: int = 3,
    threads: int = 1,
    max_pixels: int = MAX_BATCH_PIXELS,
) -> dict[str, Any]:
    """Both ways in turn, over all images of the split, with random weights.

    Args:
        threads: that decode ahead of the batches; one at a time, images are decoded when their turn comes.
    """
    torch.manual_seed(0)
    classes = reader.manifest.num_classes
    recipe = recipe.with_classes(classes)
    predictor = Predictor(Segmentor(recipe.model).to(device), recipe, device)
    (batches,) = deal_batches(reader.sizes, predictor.view_sizes, world_size=1, max_pixels=max_pixels)
    results: dict[str, Evaluation] = {}

    def batched() -> None:
        results["batched"] = evaluate_split(predictor, reader, classes, threads=threads, max_pixels=max_pixels)

    def single() -> None:
        samples = (reader[index] for index in range(len(reader)))
        results["single"] = evaluate(predictor, ((sample.image, sample.label) for sample in samples), classes)

    together, alone = Timing(), Timing()
    for _ in range(repeats + 1):
        together.measure(batched)
        alone.measure(single)
    moved = results["batched"].matrix.counts.cpu() - results["single"].matrix.counts
    return {
        "images": len(reader),
        "batches": len(batches),
        "largest batch (images)": max(len(batch.indices) for batch in batches),
        "in batches (images/s)": len(reader) / together.median_wall_s,
        "one at a time (images/s)": len(reader) / alone.median_wall_s,
        "in batches / one at a time": median_ratio(alone, together),
        "pixels counted otherwise, on ties": int(moved.abs().sum()) // 2,
        "of pixels": results["single"].matrix.scores().pixels,
    }
