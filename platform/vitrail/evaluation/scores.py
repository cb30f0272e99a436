"""mIoU, mAcc and aAcc of areas in pixels (mmsegmentation's `IoUMetric`, which counts in float32). NumPy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def scores_of(intersection: NDArray[np.int64], predicted: NDArray[np.int64], labelled: NDArray[np.int64]) -> Scores:
    """Scores of areas (K,): pixels of each class that are rightly predicted, that are predicted, that are labelled."""
    iou, acc = _divide(intersection, predicted + labelled - intersection), _divide(intersection, labelled)
    return Scores(
        miou=_mean(iou),
        macc=_mean(acc),
        aacc=float(_divide(intersection.sum(), labelled.sum())),
        iou=iou,
        acc=acc,
        pixels=int(labelled.sum()),
    )


def _divide(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
