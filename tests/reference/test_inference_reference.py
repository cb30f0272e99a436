"""From a uint8 image to probabilities, whole, sliding and over scales and flips, against mmsegmentation's pipelines."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden import Golden, Rules, files, stats
from numpy.typing import NDArray
from reference_models import build
from torch import Tensor

from vitrail.evaluation.inference import (
    MultiScaleFlip,
    ScaleToBounds,
    ScaleToOriginal,
    SlideInference,
    WholeInference,
)
from vitrail.models.normalize import normalize
from vitrail.models.segmentor import Segmentor

ATOL = 1e-4
ARCH = "deit_s_mln"
"""Of a file that states none, neither in its name nor in its JSON."""


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["whole", "rescale", "slide", pytest.param("tta", marks=pytest.mark.long)])
@pytest.mark.parametrize("path", files("inference*.npz"))
def test_inference_equals_mmsegmentation(tag: str, path: Path, rules: Rules, near: Callable[..., None]) -> None:
    want = dict(np.load(path))
    meta = json.loads(str(want["meta_json"]))[tag]
    model = model_of(path, rules)
    image = image_of(rules, meta)
    with torch.inference_mode():
        probabilities = PREDICT[tag](model, image, meta)
    best = probabilities.topk(2, dim=0).values
    margin = (best[0] - best[1])[::4, ::4].numpy()
    ours = probabilities.numpy()
    near(path, f"{tag} probabilities", ours[::8, ::8, ::8], want[f"{tag}_prob"], atol=ATOL)
    near(path, f"{tag} mean, deviation, maximum", stats(ours)[:3], want[f"{tag}_prob_stats"][:3], atol=ATOL)
    near(path, f"{tag} margin", margin, want[f"{tag}_margin"], atol=2 * ATOL)
    decided = want[f"{tag}_margin"] > ATOL
    assert decided.mean() > 0.9
    assert np.array_equal(probabilities.argmax(0)[::4, ::4].numpy()[decided], want[f"{tag}_argmax"][decided])


@pytest.mark.parametrize("path", files("inference*.npz"))
def test_inference_file_is_compared_as_a_whole(path: Path) -> None:
    tags = {name.removesuffix("_stats").rsplit("_", 1)[0] for name in np.load(path).files if name != "meta_json"}
    assert tags == set(PREDICT)


@pytest.mark.parametrize("path", files("inference*.npz"))
def test_view_sizes_equal_the_1x_pipeline(path: Path) -> None:
    for tag, meta in json.loads(str(np.load(path)["meta_json"])).items():
        if not isinstance(meta, dict):
            continue
        sizes = meta.get("tta_hw", meta.get("tta_hw_1x"))
        if sizes:
            height, width = meta["hw"] if "hw" in meta else stated_size(path, tag)
            ours = MultiScaleFlip(sizes=ScaleToOriginal()).view_sizes(height, width)
            assert [list(size) for size in ours for _ in range(2)] == sizes


@pytest.mark.parametrize("path", files("transforms.json"))
def test_view_sizes_equal_both_generations_for_every_image_size(path: Path) -> None:
    want = json.loads(path.read_text())
    ratios = tuple(want["ratios"])
    generations = {"resize_scale_factor_keep_ratio": ScaleToOriginal(), "resize_v0x_multiscale": ScaleToBounds()}
    for key, rule in generations.items():
        for (height, width), sizes in want[key]:
            ours = MultiScaleFlip(sizes=rule, ratios=ratios).view_sizes(height, width)
            assert [list(size) for size in ours] == sizes, (key, height, width)


def whole(model: Segmentor, image: NDArray[np.uint8], meta: dict[str, Any]) -> Tensor:
    height, width = image.shape[:2]
    size = ScaleToBounds()(height, width, 1.0)
    assert list(size) == meta.get("net_input_hw", list(size))
    return WholeInference()(model, network_input(image, size), (height, width))[0].softmax(0)


def slide(model: Segmentor, image: NDArray[np.uint8], meta: dict[str, Any]) -> Tensor:
    inference = SlideInference(crop_size=meta.get("crop", 512), stride=meta.get("stride", 341))
    return inference(model, network_input(image, image.shape[:2]), image.shape[:2])[0].softmax(0)


def tta(model: Segmentor, image: NDArray[np.uint8], meta: dict[str, Any]) -> Tensor:
    multi_scale = MultiScaleFlip(sizes=ScaleToOriginal())
    views = (network_input(image, size) for size in multi_scale.view_sizes(*image.shape[:2]))
    return multi_scale(model, views, image.shape[:2])[0]


PREDICT = {"whole": whole, "rescale": whole, "slide": slide, "tta": tta}


def network_input(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """BGR (H, W, 3) -> normalised RGB (1, 3, *size)"""
    if size != image.shape[:2]:
        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return normalize(torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))[None])


def image_of(rules: Rules, meta: dict[str, Any]) -> NDArray[np.uint8]:
    height, width = meta["hw"] if "hw" in meta else meta["tta_hw"][2 * RATIO_ONE]
    return rules.stated_image(meta["seed"], height, width, meta["crc32_bgr"])


RATIO_ONE = MultiScaleFlip().ratios.index(1.0)


def stated_size(path: Path, tag: str) -> tuple[int, int]:
    """From a tag such as `tta_sizes_400x600`, or the size of the view at ratio 1."""
    last = tag.rsplit("_", 1)[-1]
    if "x" in last:
        height, width = last.split("x")
        return int(height), int(width)
    meta = json.loads(str(np.load(path)["meta_json"]))[tag]
    height, width = meta["tta_hw"][2 * RATIO_ONE]
    return height, width


@cache
def model_of(path: Path, rules: Rules) -> Segmentor:
    if path.stem == "inference":
        stated = json.loads(str(np.load(path)["meta_json"])).get("arch", ARCH)
        path = path.with_name(f"inference_{stated}.npz")
    golden = Golden.parse(path)
    return build(golden, rules, size=golden.size or 512).eval()
