"""The conversion of timm's weights against mmsegmentation's own converter and loader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Rules, files, stats
from reference_models import recipe_of

from vitrail.models.naming import from_mmseg, to_mmseg
from vitrail.models.segmentor import Segmentor
from vitrail.models.vit import resize_pos_embed
from vitrail.models.weight_files import WeightFileError
from vitrail.models.weights import fit


@pytest.mark.parametrize("path", files("vit2mmseg.json"))
def test_names_equal_the_converter(path: Path) -> None:
    for want in json.loads(path.read_text()).values():
        assert len(want["mapping"]) == want["n_keys"]
        for ours, theirs, _ in want["mapping"]:
            if theirs is None:
                assert ours in want["dropped"]
            else:
                assert to_mmseg(f"backbone.{ours}") == f"backbone.{theirs}"
                assert from_mmseg(f"backbone.{theirs}") == f"backbone.{ours}"


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("path", files("vit2mmseg.json"))
def test_loading_leaves_out_what_mmsegmentation_leaves_out(path: Path) -> None:
    for want in json.loads(path.read_text()).values():
        tensors = {f"backbone.{name}": torch.empty(shape, device="meta") for name, _, shape in want["mapping"]}
        tensors["backbone.pos_embed"] = torch.zeros(tensors["backbone.pos_embed"].shape)
        for case, load in want["load"].items():
            config = recipe_of(load["model"]).model
            biased = "no_patch_bias" not in case
            backbone = config.backbone.model_copy(update={"patch_bias": biased})
            with torch.device("meta"):
                model = Segmentor(config.model_copy(update={"backbone": backbone}))
            if not biased:  # mmsegmentation ignores the bias there, which changes the function
                assert load["keys_in_file_not_used"] == ["patch_embed.projection.bias"]
                with pytest.raises(WeightFileError, match="patch_bias=true"):
                    fit(model, tensors, source="golden", format="timm", sha256=None)
                continue
            coverage = fit(model, tensors, source="golden", format="timm", sha256=None)
            unused = sorted(to_mmseg(name).removeprefix("backbone.") for name in coverage.unexpected)
            missing = [to_mmseg(n).removeprefix("backbone.") for n in coverage.missing if n.startswith("backbone.")]
            assert unused == sorted(load["keys_in_file_not_used"])
            assert missing == load["keys_of_model_not_in_file"]
            assert [name.removeprefix("backbone.") for name in coverage.dropped] == want["dropped"]
            assert list(model.backbone.pos_embed.shape) == load["pos_embed_shape"]
            assert coverage.backbone == 1.0


@pytest.mark.parametrize("path", files("vit2mmseg.json"))
def test_position_embeddings_equal_mmsegmentation(path: Path, rules: Rules, near: Callable[..., None]) -> None:
    for want in json.loads(path.read_text()).values():
        shape = next(shape for name, _, shape in want["mapping"] if name == "pos_embed")
        golden = want["pos_embed"]
        original = torch.from_numpy(rules.weight("pos_embed", tuple(shape)))
        side = round((golden["resized_shape"][1] - 1) ** 0.5)
        resized = resize_pos_embed(original, (side, side))
        assert list(resized.shape) == golden["resized_shape"]
        near(path, "class token", resized[0, 0, :8], golden["cls_row_first8"], atol=1e-7)
        compare(path, "at load time", resized, golden, near)
        for name, at_run_time in golden.items():
            if name.startswith("runtime_"):
                height, width = map(int, name.removeprefix("runtime_").split("x"))
                compare(path, name, resize_pos_embed(resized, (height, width)), at_run_time, near)


def compare(path: Path, name: str, ours: torch.Tensor, want: dict[str, Any], near: Callable[..., None]) -> None:
    """Against a sample such as `[0, 1::37, ::48]`, by the strides that its rule states, and whole statistics."""
    rows, columns = (int(part.split(":")[-1].strip(" ]")) for part in want["sample_rule"].split(",")[-2:])
    near(path, f"position embedding {name}", ours[0, 1::rows, ::columns], want["sample"], atol=1e-6)
    near(path, f"position embedding {name}, statistics", stats(ours.numpy())[:3], want["stats"][:3], atol=1e-6)
