"""Backbone, neck and head outputs against mmsegmentation's, and the state dict's names, shapes and drop path rates."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Golden, Rules, files, stats
from numpy.typing import NDArray
from reference_models import build, recipe_of
from torch import Tensor

from vitrail.evaluation.inference import WholeInference
from vitrail.models.naming import to_mmseg
from vitrail.models.segmentor import Segmentor

ATOL = 1e-4


@pytest.mark.parametrize("path", files("keys_*.json"))
def test_state_dict_has_the_names_shapes_and_order_of_mmsegmentation(path: Path) -> None:
    want = json.loads(path.read_text())
    config = recipe_of(want["arch"]).model
    config = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"patch_bias": want["patch_bias"]})}
    )
    with torch.device("meta"):
        model = Segmentor(config)
    assert [[to_mmseg(name), list(value.shape)] for name, value in model.state_dict().items()] == want["state_dict"]
    counts = {
        part: sum(p.numel() for n, p in model.named_parameters() if n.startswith(part))
        for part in ("", "backbone.", "neck.", "decode_head.", "auxiliary_head.")
    }
    assert {part.rstrip(".") or "total": count for part, count in counts.items()} == want["params"]
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.backbone.blocks]
    assert rates == pytest.approx(want["drop_path"], abs=1e-9)


@pytest.mark.parametrize("path", files("forward_*.npz"))
def test_forward_equals_mmsegmentation(path: Path, rules: Rules, near: Callable[..., None]) -> None:
    golden, want = Golden.parse(path), dict(np.load(path))
    size = golden.size or 512
    model = build(golden, rules, size=size).eval()
    x = torch.from_numpy(rules.rand_input(1000 + golden.index, (1, 3, size, size)))
    wide = wide_shape(want, size)
    x_wide = torch.from_numpy(rules.rand_input(1100 + golden.index, (1, 3, *wide)))
    with torch.inference_mode():
        ours = square_outputs(model, x) | {f"w{wide[1]}_{k}": v for k, v in wide_outputs(model, x_wide).items()}
    assert set(want) <= set(ours), f"not compared: {set(want) - set(ours)}"
    for name, value in want.items():
        if name.endswith("_stats"):
            near(path, "mean, deviation, maximum", ours[name][:3], value[:3], atol=[1e-5, 1e-5, ATOL])
            near(path, "sum of absolutes", ours[name][3:], value[3:], rtol=1e-6)
        elif name.endswith("_argmax"):
            decided = want[name.replace("argmax", "margin")] > 2 * ATOL
            assert decided.mean() > 0.9
            assert np.array_equal(ours[name][decided], value[decided])
        else:
            near(path, re.sub(r"_\d$", "", name), ours[name], value, atol=2 * ATOL if "margin" in name else ATOL)


def square_outputs(model: Segmentor, x: Tensor) -> dict[str, NDArray[np.float64]]:
    """Everything that a file holds of the square input."""
    levels = model.backbone(x)
    outputs = {f"backbone_{k}": (level, slice(None, None, 8), 2) for k, level in enumerate(levels)}
    if model.neck is not None:
        levels = model.neck(levels)
        outputs |= {f"neck_{k}": (level, slice(None, None, 16), _step(level)) for k, level in enumerate(levels)}
    decode, aux = model.decode_head(levels), model.auxiliary_head(levels)
    outputs |= {
        "decode_logits": (decode, slice(None), _step(decode)),
        "aux_logits": (aux, slice(None), _step(aux)),
    }
    return _sampled({name: (value[0].numpy(), channels, step) for name, (value, channels, step) in outputs.items()})


def wide_outputs(model: Segmentor, x: Tensor) -> dict[str, NDArray[np.float64]]:
    """Everything that a file holds of the input that needs padding and other positions."""
    ours = _sampled(
        {f"backbone_{k}": (level[0].numpy(), slice(None, None, 16), 2) for k, level in enumerate(model.backbone(x))}
    )
    logits = WholeInference()(model, x, out_size=(x.shape[2], x.shape[3]))[0]
    best = logits.topk(2, dim=0).values
    ours |= _sampled({"logits": (logits.numpy(), slice(None, None, 8), 8)})
    ours["argmax"] = logits.argmax(0)[::4, ::4].numpy()
    ours["margin"] = (best[0] - best[1])[::4, ::4].numpy()
    return ours


def wide_shape(want: dict[str, NDArray[np.float64]], size: int) -> tuple[int, int]:
    """Height and width of the second input: the width from the names, the height as the samples allow it."""
    argmax = next(name for name in want if name.endswith("_argmax"))
    rows, columns = want[argmax].shape
    width = int(argmax.removeprefix("w").removesuffix("_argmax"))
    assert -(-width // 4) == columns
    height = next(h for h in (size, 512, 4 * rows) if -(-h // 4) == rows)
    return height, width


def _step(level: Tensor) -> int:
    return max(1, level.shape[-1] // 16)


def _sampled(outputs: dict[str, tuple[NDArray[np.float64], slice, int]]) -> dict[str, NDArray[np.float64]]:
    samples = {name: x[channels, ::step, ::step] for name, (x, channels, step) in outputs.items()}
    return samples | {f"{name}_stats": stats(x) for name, (x, _, _) in outputs.items()}
