"""Counts image by image add up to what the confusion matrix of all images says, whoever counted which image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.data.shards import ShardReader
from vitrail.errors import DataError
from vitrail.evaluation.image_counts import ImageCounts
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.split import count_images, evaluate_split
from vitrail.models.segmentor import Segmentor
from vitrail.recipes import get_recipe


def made_up(images: int = 6, classes: int = 4, *, seed: int = 0) -> tuple[ImageCounts, ConfusionMatrix]:
    """Counts of random maps, with ignored pixels and with labels that are no class, and the matrix of all of them."""
    random = np.random.default_rng(seed)
    total, areas = ConfusionMatrix(classes), {}
    for index in range(images):
        prediction = torch.from_numpy(random.integers(0, classes, (9, 7)))
        label = torch.from_numpy(random.choice([*range(classes), classes + 2, 255], (9, 7)))
        image = ConfusionMatrix(classes)
        image.update(prediction, label)
        total.merge(image)
        areas[index] = image.areas().numpy()
    return ImageCounts.of_areas([f"image {index}" for index in range(images)], areas), total


def test_scores_of_images_are_those_of_the_confusion_matrix() -> None:
    counts, total = made_up()
    expected, found = total.scores(), counts.scores()
    assert (found.miou, found.macc, found.aacc, found.pixels) == (
        expected.miou,
        expected.macc,
        expected.aacc,
        expected.pixels,
    )
    np.testing.assert_array_equal(found.iou, expected.iou)


def test_counts_survive_being_written() -> None:
    counts, _ = made_up()
    again = ImageCounts.from_bytes(counts.to_bytes(), "a file")
    assert again.ids == counts.ids
    for name in ("intersection", "predicted", "labelled"):
        np.testing.assert_array_equal(getattr(again, name), getattr(counts, name))
    with pytest.raises(DataError, match="a file holds no counts"):
        ImageCounts.from_bytes(counts.to_bytes()[:-40], "a file")


def test_ranks_count_every_image_once(tiny_data: Path) -> None:
    reader = ShardReader(tiny_data, "validation")
    classes = reader.manifest.num_classes
    recipe = get_recipe("upernet_vit-nano_128x128_1k").with_classes(classes)
    torch.manual_seed(0)
    predictor = Predictor(Segmentor(recipe.model).eval(), recipe)
    shares = [count_images(predictor, reader, classes, rank=rank, world_size=2) for rank in range(2)]
    assert sorted([*shares[0], *shares[1]]) == list(range(len(reader)))
    counts = ImageCounts.of_areas(reader.ids, {**shares[0], **shares[1]})
    whole = evaluate_split(predictor, reader, classes).matrix
    np.testing.assert_array_equal(
        np.stack([counts.intersection, counts.predicted, counts.labelled]).sum(1), whole.areas().numpy()
    )
