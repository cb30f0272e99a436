"""Counting which pixels were predicted as what: exact, on the device."""

import torch
from torch import Tensor

from vitrail.config import IGNORE_INDEX
from vitrail.evaluation.scores import Scores, scores_of


class ConfusionMatrix:
    """How often a pixel of one class was predicted as another, in int64; kept and added up on its device.

    `counts` is `(K + 1, K)`: rows are labels, columns predictions. The last row holds labels that are neither a class
    nor 255: as in mmsegmentation they are no error, but their pixels belong to the predicted areas.

    `impossible` counts predictions that are no class. They are an error, and `scores` says so, not `update`: to look
    at every image's would be to wait for the device each time.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros((num_classes + 1, num_classes), dtype=torch.int64, device=device)
        self.impossible = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count predictions 0..K-1 against labels of the same shape, integers of any width, without any wait."""
        if pred.shape != label.shape:
            raise ValueError(f"predictions {tuple(pred.shape)} and labels {tuple(label.shape)} differ in shape")
        pred, label = pred.long(), label.long()
        row = label.masked_fill(_is_outside(label, self.num_classes), self.num_classes)
        ignored = self.counts.numel()
        cell = (row * self.num_classes + pred).masked_fill_(label == IGNORE_INDEX, ignored)
        cell = cell.masked_fill_(_is_outside(pred, self.num_classes), ignored + 1).flatten()
        # Not bincount: on a GPU that asks for the largest value, and waits.
        counts = cell.new_zeros(ignored + 2).scatter_add_(0, cell, cell.new_ones(()).expand(len(cell)))
        counts = counts.to(self.counts.device)
        self.counts += counts[:ignored].view_as(self.counts)
        self.impossible += counts[-1]

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of other images."""
        self.counts += other.counts.to(self.counts.device)
        self.impossible += other.impossible.to(self.impossible.device)

    def check(self) -> None:
        """Wait for the device, and raise `ValueError` if any prediction was not a class."""
        impossible = int(self.impossible)
        if impossible:
            raise ValueError(f"{impossible} predictions are outside the classes 0..{self.num_classes - 1}")

    def areas(self) -> Tensor:
        """`(3, K)`, on the device: pixels of each class rightly predicted, predicted at all, and labelled."""
        return torch.stack([self.counts.diagonal(), self.counts.sum(0), self.counts[:-1].sum(1)])

    def scores(self) -> Scores:
        """The metrics of everything counted so far; NaN where nothing was. Raises what `check` raises."""
        self.check()
        intersection, predicted, labelled = self.areas().cpu().numpy()
        return scores_of(intersection, predicted, labelled)


def _is_outside(classes: Tensor, num_classes: int) -> Tensor:
    return (classes < 0) | (classes >= num_classes)
