"""Pixel counts and scores against `IoUMetric`, with absent classes, ignored pixels and labels out of range."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import files
from numpy.typing import NDArray

from vitrail.evaluation.metrics import ConfusionMatrix

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.mark.parametrize("path", files("metrics.npz"))
def test_scores_equal_mmsegmentation(path: Path, near: Callable[..., None]) -> None:
    want = dict(np.load(path))
    summaries = json.loads(path.with_suffix(".json").read_text())
    cases = sorted(name.removesuffix("_aAcc") for name in want if name.endswith("_aAcc") and "_v030" not in name)
    assert {case.removesuffix("_v0.30") for case in summaries} == set(cases)
    for case in cases:
        num_classes = len(want[f"{case}_IoU"])
        matrix = ConfusionMatrix(num_classes)
        for pred, label in pairs(want, case):
            matrix.update(torch.from_numpy(pred), torch.from_numpy(label))
        scores = matrix.scores()

        counts = matrix.counts.numpy()
        intersect, label_area, pred_area = counts.diagonal(), counts[:-1].sum(1), counts.sum(0)
        areas = {
            "intersect": intersect,
            "label": label_area,
            "pred": pred_area,
            "union": pred_area + label_area - intersect,
        }
        for name, area in areas.items():
            near(path, "areas", area, want[f"{case}_area_{name}"])
        near(
            path, "per class, float32", [scores.iou, scores.acc], [want[f"{case}_IoU"], want[f"{case}_Acc"]], atol=1e-6
        )
        near(path, "aAcc, float32", scores.aacc, want[f"{case}_aAcc"], atol=1e-6)
        if f"{case}_v030_IoU" in want:
            old = [want[f"{case}_v030_IoU"], want[f"{case}_v030_Acc"]]
            near(path, "per class, 0.30", [scores.iou, scores.acc], old, atol=1e-7)
            near(path, "aAcc, 0.30", scores.aacc, want[f"{case}_v030_aAcc"], atol=1e-7)
        for summary in (summaries[case], summaries.get(f"{case}_v0.30", summaries[case])):
            ours = {"mIoU": scores.miou, "mAcc": scores.macc, "aAcc": scores.aacc}
            assert {name: round(100 * value, 2) for name, value in ours.items()} == {n: summary[n] for n in ours}


def pairs(want: dict[str, NDArray[np.uint8]], case: str) -> list[Pair]:
    """Predictions and labels of a case; raw labels are reduced by the rule, and checked against the file's own."""
    indices = sorted(int(name.removeprefix("pred_")) for name in want if name.startswith("pred_"))
    found = []
    for i in indices:
        label = want[f"label_{i}"]
        if f"{case}_label_{i}" in want:
            label = want[f"{case}_label_{i}"]
        if case == "raw":
            raw = want[f"raw_{i}"].astype(int)
            label = np.where((raw == 0) | (raw == 255), 255, raw - 1).astype(np.uint8)
            assert np.array_equal(label, want[f"reduced_{i}"])
        if case == "ignored_image" and i == 1:
            label = np.full_like(label, 255)
        found.append((want[f"pred_{i}"], label))
    return found
