"""A small prepared data set whose images have several shapes and sizes, and a model with clear opinions."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vitrail.config import Recipe
from vitrail.data.layout import read_layout
from vitrail.data.shard_writer import assemble_manifest, plan_shards, write_shard
from vitrail.data.shards import ShardReader
from vitrail.models.segmentor import Segmentor
from vitrail.overrides import override
from vitrail.recipes import get_recipe

CLASSES = 8
# Tested at 48 x 72 in three original sizes, mixed with other shapes, one of them bounded by its long side.
SIZES = [(48, 72), (96, 144), (64, 64), (72, 48), (48, 72), (24, 36), (40, 130), (48, 72), (65, 64), (64, 64), (72, 48)]


@pytest.fixture(scope="session")
def mixed_reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """The validation split of made-up images of `SIZES`, in three shards."""
    root = tmp_path_factory.mktemp("mixed")
    source, folder = root / "source", root / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        image = cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), size[::-1])
        ids = cv2.resize(rng.integers(0, CLASSES + 1, (4, 5), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        for split in ("training", "validation"):
            _write(source / "images" / split / f"{index:02d}.png", image)
            _write(source / "annotations" / split / f"{index:02d}.png", ids)
    rows = "".join(f"{number},class {number}\n" for number in range(1, CLASSES + 1))
    (source / "classes.csv").write_text("index,name\n" + rows)
    layout = read_layout(source)
    plans = plan_shards(layout, shard_size_bytes=50_000)
    assemble_manifest(layout, plans, [write_shard(plan, source=source, folder=folder) for plan in plans]).save(folder)
    reader = ShardReader(folder, "validation")
    assert list(reader.sizes) == SIZES
    return reader


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    changes = ["transforms.scale=[144,48]", "model.backbone.img_size=48", "ms_flip.ratios=[0.75,1.0]"]
    return override(get_recipe("upernet_vit-nano_mln_128x128_1k"), changes).with_classes(CLASSES)


@pytest.fixture(scope="session")
def model(recipe: Recipe) -> Segmentor:
    """Random weights, the classifier's enlarged: logits a few units apart, so that few pixels are near a tie."""
    torch.manual_seed(0)
    segmentor = Segmentor(recipe.model)
    with torch.no_grad():
        segmentor.decode_head.conv_seg.weight.mul_(20)
    return segmentor.eval()


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
