"""How sure a difference between two models is: a paired bootstrap over the images both were judged on.

Images are drawn with replacement, the same ones for both models, and both are scored on each draw: what the two find
hard alike cancels out. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, percentile
intervals; Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004), for the pairing; Hesterberg,
What Teachers Should Know About the Bootstrap (2015), for the wider quantiles that few images need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import UsageError
from vitrail.evaluation.image_counts import ImageCounts

RESAMPLES = 5000
_CHUNK = 500
"""Draws that are scored at a time: so many weights per image are held."""


@dataclass(frozen=True)
class Interval:
    """A difference, and between which values it lies with 95 % confidence. NaN where it is not defined."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Differences:
    """The first model's scores less the second's, over all images and in every draw."""

    images: int
    miou: float
    miou_draws: NDArray[np.float64]
    """(R,)"""
    iou: NDArray[np.float64]
    """(K,); NaN for a class that one of the two has no score for"""
    iou_draws: NDArray[np.float64]
    """(R, K)"""

    def miou_interval(self) -> Interval:
        """Of the difference in mIoU."""
        return _interval(self.miou, self.miou_draws, self.images)

    def iou_intervals(self) -> list[Interval]:
        """Of the difference in each class's IoU."""
        return [_interval(float(value), self.iou_draws[:, index], self.images) for index, value in enumerate(self.iou)]


def paired_differences(
    first: ImageCounts, second: ImageCounts, *, resamples: int = RESAMPLES, seed: int = 0
) -> Differences:
    """Differences of two models on the same images; the same arguments give the same draws.

    Raises:
        UsageError: the two were not judged on the same images and classes.
    """
    _refuse_other_images(first, second)
    areas = np.concatenate([_areas(first), _areas(second)], axis=1).astype(np.float64)
    everything = np.ones((1, len(first)))
    iou, miou = _differences(everything @ areas)
    random = np.random.default_rng(seed)
    draws = [
        _differences(_draw(random, len(first), min(_CHUNK, resamples - start)) @ areas)
        for start in range(0, resamples, _CHUNK)
    ]
    return Differences(
        images=len(first),
        miou=float(miou[0]),
        miou_draws=np.concatenate([miou for _, miou in draws]),
        iou=iou[0],
        iou_draws=np.concatenate([iou for iou, _ in draws]),
    )


def _draw(random: np.random.Generator, images: int, resamples: int) -> NDArray[np.float64]:
    """(R, N): how often each image was drawn."""
    return random.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)


def _areas(counts: ImageCounts) -> NDArray[np.int64]:
    """(N, 2 K): intersections and unions, which add up over images."""
    return np.concatenate([counts.intersection, counts.predicted + counts.labelled - counts.intersection], axis=1)


def _differences(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R, 4 K) of both models -> differences in IoU (R, K) and in mIoU (R,)."""
    first, second = np.split(sums, 2, axis=1)
    ious = [_divide(*np.split(areas, 2, axis=1)) for areas in (first, second)]
    return ious[0] - ious[1], _mean(ious[0]) - _mean(ious[1])


def _divide(intersection: NDArray[np.float64], union: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.true_divide(intersection, union)


def _mean(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes that occur in a draw, as mIoU is defined."""
    defined = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(defined, iou, 0).sum(1) / defined.sum(1)
    return mean


def _interval(estimate: float, draws: NDArray[np.float64], images: int) -> Interval:
    defined = draws[~np.isnan(draws)]
    if not defined.size or np.isnan(estimate):
        return Interval(estimate, float("nan"), float("nan"))
    tail = _tail(images)
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def _tail(images: int) -> float:
    """Share of the draws beyond each end: 2.5 % of many images, less of few, whose draws spread too little."""
    from scipy.stats import norm, t

    if images < 2:
        return 0.0
    return float(norm.cdf(np.sqrt(images / (images - 1)) * t.ppf(0.025, images - 1)))


def _refuse_other_images(first: ImageCounts, second: ImageCounts) -> None:
    if first.num_classes != second.num_classes:
        raise UsageError(f"models of {first.num_classes} and {second.num_classes} classes cannot be compared")
    if first.ids != second.ids:
        shared = len({*first.ids} & {*second.ids})
        raise UsageError(
            f"the two were judged on different images ({len(first)} and {len(second)}, of which {shared} are the same)"
        )
