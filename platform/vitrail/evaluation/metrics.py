"""mIoU, mAcc and aAcc from exact pixel counts (mmsegmentation's `IoUMetric`, which counts in float32)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.config import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Fractions in 0..1. A class that neither labels nor predictions hold is NaN, and is left out of the means."""

    miou: float
    macc: float
    aacc: float
    iou: NDArray[np.float64]
    """(K,) intersection over union"""
    acc: NDArray[np.float64]
    """(K,) recall; NaN for a class without labelled pixels"""
    pixels: int
    """Labelled pixels of the K classes."""


class ConfusionMatrix:
    """How often a pixel of one class was predicted as another, in int64.

    `counts` is `(K + 1, K)`: rows are labels, columns predictions. The last row holds labels that are neither a class
    nor 255: as in mmsegmentation they are no error, but their pixels belong to the predicted areas.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros((num_classes + 1, num_classes), dtype=torch.int64, device=device)

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count predictions 0..K-1 against labels of the same shape, integers of any width."""
        if pred.shape != label.shape:
            raise ValueError(f"predictions {tuple(pred.shape)} and labels {tuple(label.shape)} differ in shape")
        pred, label = pred.long(), label.long()
        if pred.numel() and not 0 <= int(pred.min()) <= int(pred.max()) < self.num_classes:
            raise ValueError(
                f"predictions from {int(pred.min())} to {int(pred.max())}, classes 0..{self.num_classes - 1}"
            )
        outside = (label < 0) | (label >= self.num_classes)
        row = label.masked_fill(outside, self.num_classes)
        ignored = self.counts.numel()
        cell = (row * self.num_classes + pred).masked_fill(label == IGNORE_INDEX, ignored)
        counts = torch.bincount(cell.flatten(), minlength=ignored + 1)
        self.counts += counts[:ignored].view_as(self.counts).to(self.counts.device)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of other images."""
        self.counts += other.counts.to(self.counts.device)

    def scores(self) -> Scores:
        """The metrics of everything counted so far; NaN where nothing was."""
        counts = self.counts.cpu().numpy()
        intersect = counts.diagonal()
        label_area = counts[:-1].sum(axis=1)
        union = counts.sum(axis=0) + label_area - intersect
        iou, acc = _divide(intersect, union), _divide(intersect, label_area)
        return Scores(
            miou=_mean(iou),
            macc=_mean(acc),
            aacc=float(_divide(intersect.sum(), label_area.sum())),
            iou=iou,
            acc=acc,
            pixels=int(label_area.sum()),
        )


def _divide(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
