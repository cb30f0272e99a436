"""The cross-entropy of logits against labels of a larger size, without ever holding the enlarged logits.

At 512 x 512 and 150 classes one image's enlarged logits take 150 MiB, and plain autograd holds several such. Here a few
rows at a time are enlarged, scored, and their gradient taken back to the logits' own size at once.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.config import IGNORE_INDEX
from vitrail.models.layers import full_precision, upsampling_matrix

_PIECE_BYTES = {"cpu": 16 * 2**20, "cuda": 160 * 2**20}
"""Enlarged logits held at a time: what a CPU's cache takes; on a GPU, enough to keep it busy."""


def segmentation_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of upsampled logits, and the percentage of labelled pixels that are right.

    `logits` `(N, K, h, w)`, `labels` int64 `(N, H, W)`. The loss is averaged over all pixels, ignored ones included
    (mmsegmentation's avg_non_ignore=False); the accuracy over the labelled ones (mmsegmentation from 0.22).
    """
    total, correct = _UpsampledCrossEntropy.apply(full_precision(logits), labels)
    accuracy = 100.0 * correct / (labels != IGNORE_INDEX).sum().clamp(min=1)
    return total / labels.numel(), accuracy


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies over labelled pixels, and how many of these are right."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        small = logits.permute(0, 2, 3, 1).contiguous()  # classes last: a pixel's scores lie side by side
        vertical, horizontal = (
            _upsampling(n, to, logits.dtype, logits.device)
            for n, to in zip(logits.shape[-2:], labels.shape[-2:], strict=True)
        )
        total, correct = logits.new_zeros(()), logits.new_zeros((), dtype=torch.int64)
        gradient = torch.zeros_like(small) if needs_gradient else None
        for index in range(len(logits)):
            for rows in _pieces(labels.shape[1], labels.shape[2] * logits.shape[1] * logits.itemsize, logits.device):
                scores = _enlarge(small[index], vertical[rows], horizontal)
                right = _score(scores, labels[index, rows], total)
                correct += right
                if gradient is not None:
                    gradient[index] += _reduce(scores, vertical[rows], horizontal)
        if gradient is not None:
            ctx.save_for_backward(gradient.permute(0, 3, 1, 2))
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total, None


def _score(scores: Tensor, labels: Tensor, total: Tensor) -> Tensor:
    """Add the cross-entropies of `(R, W, K)` scores to `total`, return how many are right, and turn the scores into the
    gradient of that sum by them."""
    labelled = labels != IGNORE_INDEX
    target = labels.masked_fill(~labelled, 0)[..., None]
    best, choice = scores.max(dim=-1, keepdim=True)
    right = (choice[..., 0] == labels).sum()  # no class is called 255
    scores -= best
    of_target = scores.gather(-1, target)[..., 0]
    scores.exp_()
    sums = scores.sum(dim=-1, keepdim=True)
    total += ((sums[..., 0].log() - of_target) * labelled).sum()
    scores /= sums
    scores.scatter_(-1, target, scores.gather(-1, target) - 1)
    scores *= labelled[..., None]
    return right


def _enlarge(small: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """`(h, w, K)` -> `(R, W, K)`: the rows of `vertical` `(R, h)`, as wide as `horizontal` `(W, w)` makes them."""
    height, width, classes = small.shape
    rows = (vertical @ small.view(height, width * classes)).view(-1, width, classes)
    return torch.bmm(horizontal.expand(len(rows), -1, -1), rows)


def _reduce(gradient: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The transpose of `_enlarge`: `(R, W, K)` -> `(h, w, K)`"""
    rows = torch.bmm(horizontal.T.expand(len(gradient), -1, -1), gradient)
    _, width, classes = rows.shape
    return (vertical.T @ rows.view(len(rows), width * classes)).view(-1, width, classes)


def _pieces(rows: int, row_bytes: int, device: torch.device) -> list[slice]:
    step = max(1, _PIECE_BYTES.get(device.type, _PIECE_BYTES["cuda"]) // row_bytes)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@lru_cache(maxsize=64)  # a copy to the device for every batch would wait for the device
def _upsampling(length: int, to: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`(to, length)`"""
    with torch.inference_mode(False):  # what is kept must also do for training
        return upsampling_matrix(length, to=to).to(device, dtype)
