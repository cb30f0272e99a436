"""ONNX files run by onnxruntime, against the models that they were made of."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from typer.testing import CliRunner

from vitrail.checkpoint import INFO, WEIGHTS, CheckpointInfo, DataSource, file_sha256, info_bytes
from vitrail.cli import app
from vitrail.config import Recipe
from vitrail.data.layout import distinct_colours
from vitrail.evaluation.onnx_export import check_sizes, compare, export_onnx
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.trained import TrainedModel
from vitrail.models.segmentor import Segmentor
from vitrail.overrides import override
from vitrail.recipes import get_recipe

CLASSES = ("sky", "building", "car", "tree", "road")
SHALLOW = ["model.backbone.depth=4", "model.backbone.out_indices=[0,1,2,3]"]


def small_recipe(neck: str) -> Recipe:
    return override(get_recipe(f"upernet_vit-nano_{neck}128x128_1k"), SHALLOW).with_classes(len(CLASSES))


def random_segmentor(recipe: Recipe) -> Segmentor:
    """With a position embedding and a classifier large enough to matter to every label."""
    torch.manual_seed(0)
    segmentor = Segmentor(recipe.model)
    with torch.no_grad():
        assert segmentor.backbone.pos_embed is not None
        segmentor.backbone.pos_embed.mul_(50)
        segmentor.decode_head.conv_seg.weight.mul_(20)
    return segmentor.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, recipe = tmp_path_factory.mktemp("checkpoints") / "step_000250", small_recipe("")
    folder.mkdir()
    save_file(random_segmentor(recipe).state_dict(), folder / WEIGHTS)
    info = CheckpointInfo(
        step=250,
        recipe=recipe,
        classes=CLASSES,
        palette=distinct_colours(len(CLASSES)),
        reduce_zero_label=False,
        data=DataSource(name="streets", fingerprint="d" * 32, val_images=20),
        seed=0,
        run_key="run-0",
        files={WEIGHTS: file_sha256(folder / WEIGHTS)},
    )
    (folder / INFO).write_bytes(info_bytes(info))
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command, which prints nothing but its table."""
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    result = CliRunner().invoke(app, ["models", "export", str(checkpoint), str(out), "--format", "onnx"])
    assert result.exit_code == 0, result.output
    assert "two images" in result.output and "2 x 96 x 80" in result.output
    assert "torch.onnx" not in result.output and "Warning" not in result.output
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return out


def described(recipe: Recipe) -> TrainedModel:
    return TrainedModel(title="", recipe=recipe, classes=CLASSES, palette=(), reduce_zero_label=False)


@pytest.mark.slow
@pytest.mark.parametrize("neck", [pytest.param("mln_", marks=pytest.mark.long), "ln_mln_"])
def test_model_with_a_neck_runs_at_all_sizes(neck: str, tmp_path: Path) -> None:
    recipe = override(small_recipe(neck), ["inference.kind=slide", "inference.crop_size=128", "inference.stride=85"])
    out = tmp_path / "model.onnx"
    agreements = export_onnx(random_segmentor(recipe), described(recipe), out).agreements
    assert {agreement.what for agreement in agreements} == set(check_sizes(recipe))
    assert max(agreement.deviation for agreement in agreements) < 1e-5
    assert min(agreement.equal_labels for agreement in agreements) > 0.999
    metadata = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["vitrail.graph"]) == "one window of `inference`"
    assert json.loads(metadata["vitrail.inference"]) == {"kind": "slide", "crop_size": 128, "stride": 85}


@pytest.mark.slow
def test_exported_file_predicts_as_the_predictor_does(exported: Path) -> None:
    recipe = small_recipe("")
    image = np.random.default_rng(0).integers(0, 256, (128, 171, 3), np.uint8)  # of the test scale already
    labels, logits = onnxruntime.InferenceSession(exported).run(None, {"image": image.transpose(2, 0, 1)[None]})
    expected = Predictor(random_segmentor(recipe), recipe)(image)
    assert labels.dtype == np.uint8 and labels.shape == (1, 128, 171) and logits.shape == (1, 5, 8, 11)
    assert len(np.unique(expected)) > 1
    assert (labels[0] == expected).mean() > 0.999


@pytest.mark.slow
def test_exported_file_explains_itself(exported: Path, checkpoint: Path) -> None:
    metadata = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    values = {key.removeprefix("vitrail."): json.loads(value) for key, value in metadata.items()}
    assert values["classes"] == list(CLASSES) and len(values["palette"]) == len(CLASSES)
    assert values["recipe"] == "upernet_vit-nano_128x128_1k" and values["step"] == 250
    assert values["scale"] == [512, 128] and values["inference"] == {"kind": "whole"}
    assert values["graph"] == "whole image" and values["reduce_zero_label"] is False
    assert values["weights_sha256"] == file_sha256(checkpoint / WEIGHTS)
    assert values["data_fingerprint"] == "d" * 32
    assert str(Path(sys.prefix)).encode() not in exported.read_bytes()


@pytest.mark.slow
def test_comparison_notices_weights_and_wiring_that_are_off(exported: Path, tmp_path: Path) -> None:
    recipe = small_recipe("")
    segmentor, sizes = random_segmentor(recipe), check_sizes(recipe)
    assert all(agreement.within(1e-3) for agreement in compare(exported, segmentor, sizes))

    model = onnx.load(exported)
    weight = next(w for w in model.graph.initializer if w.name.endswith("patch_embed.proj.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.05, weight.name))
    onnx.save(model, tmp_path / "weights.onnx")
    assert not any(agreement.within(1e-3) for agreement in compare(tmp_path / "weights.onnx", segmentor, sizes))

    model = onnx.load(exported)
    bicubic = [a for n in model.graph.node for a in n.attribute if n.op_type == "Resize" and a.s == b"cubic"]
    assert bicubic
    for attribute in bicubic:
        attribute.s = b"linear"
    onnx.save(model, tmp_path / "wiring.onnx")
    within = {a.what: a.within(1e-3) for a in compare(tmp_path / "wiring.onnx", segmentor, sizes)}
    # Where the position embedding is not resized, it does not matter how it would be.
    unresized = {"training crop", "wide, tokens of a square"}
    assert within == {what: what in unresized for what in sizes}


@pytest.mark.slow
def test_file_that_is_refused_ends_with_1_and_leaves_what_was_there(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("an older one")
    result = CliRunner().invoke(app, ["models", "export", str(checkpoint), str(out), "--tolerance", "0"])
    assert result.exit_code == 1
    assert "was not written" in result.output and "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_text() == "an older one"


def test_wrong_commands_end_with_2_and_a_way_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["models", "export", *map(str, arguments)])
        assert result.exit_code == 2 and "Traceback" not in result.output
        return result.output

    out = tmp_path / "model.onnx"
    assert "not a checkpoint" in refused(tmp_path, out)
    assert "there is no folder" in refused(checkpoint, tmp_path / "nowhere" / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert "onnxruntime is not installed" in refused(checkpoint, out)
    assert not out.exists()
