"""A checkpoint of mmsegmentation, imported, scored and used for prediction as one of our own is."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.data.manifest import Manifest
from vitrail.data.shards import ShardReader
from vitrail.errors import UsageError
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.trained import TrainedModel, open_model
from vitrail.models.segmentor import Segmentor
from vitrail.models.weights import export_weights
from vitrail.overrides import override
from vitrail.recipes import get_recipe

Run = Callable[..., tuple[int, str]]
NANO = "upernet_vit-nano_mln_128x128_1k"
SMALL = "transforms.scale=[128,64]"


@pytest.fixture(scope="module")
def imported(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for the classes of `tiny_data`, written as mmsegmentation does and imported."""
    folder = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    model = Segmentor(get_recipe(NANO).with_classes(Manifest.load(tiny_data).num_classes).model)
    export_weights(model, folder / "mmseg.pth", format="mmseg")
    out = folder / "imported.safetensors"
    result = CliRunner().invoke(app, ["weights", "import", str(folder / "mmseg.pth"), str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_imported_model_is_evaluated_as_it_is_asked_to_be_tested(
    ray_session: None, run_script: Run, imported: Path, tiny_data: Path, tmp_path: Path
) -> None:
    changes = [SMALL, "inference.kind=slide", "inference.crop_size=48", "inference.stride=32"]
    options = [part for change in changes for part in ("--set", change)]
    out = tmp_path / "scores.json"
    code, output = run_script("jobs/evaluate.py", imported, "--data", tiny_data, "--workers", 2, "--out", out, *options)
    assert code == 0, output

    model, described = open_model(imported)
    predictor = Predictor(model, override(described.recipe, changes))
    reader = ShardReader(tiny_data, "validation")
    matrix = ConfusionMatrix(described.recipe.model.num_classes)
    for sample in (reader[index] for index in range(len(reader))):
        matrix.update(torch.from_numpy(predictor(sample.image)), torch.from_numpy(sample.label))
    assert json.loads(out.read_text())["mIoU"] == pytest.approx(matrix.scores().miou, abs=1e-12)


@pytest.mark.slow
def test_imported_model_segments_images(
    ray_session: None, run_script: Run, imported: Path, ade20k_sample: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.full((40, 60, 3), 90, np.uint8))
    code, output = run_script("pipelines/predict.py", imported, images, tmp_path / "out")
    assert code == 0, output
    assert cv2.imread(str(tmp_path / "out" / "labels" / "a.png"), cv2.IMREAD_UNCHANGED).shape == (40, 60)


def test_what_training_has_decided_cannot_be_set_at_evaluation() -> None:
    described = TrainedModel(title="", recipe=get_recipe(NANO), classes=None, palette=(), reduce_zero_label=True)
    assert described.tested_as(["ms_flip.relative_to=image"]).recipe.ms_flip.relative_to == "image"
    with pytest.raises(UsageError, match="model cannot be set"):
        described.tested_as(["model.backbone.drop_path_rate=0.3"])
