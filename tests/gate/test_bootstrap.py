"""The paired bootstrap against every possible draw, against arithmetic, and on models that are equally good."""

from itertools import product

import numpy as np
import pytest
from made_up_evidence import judged, scenes

from vitrail.errors import UsageError
from vitrail.evaluation.image_counts import ImageCounts
from vitrail.gate.bootstrap import paired_differences


def of(intersection: list[list[int]], predicted: list[list[int]], labelled: list[list[int]]) -> ImageCounts:
    arrays = [np.array(values, dtype=np.int64) for values in (intersection, predicted, labelled)]
    ids = tuple(map(str, range(len(intersection))))
    return ImageCounts(ids=ids, intersection=arrays[0], predicted=arrays[1], labelled=arrays[2])


def miou(counts: ImageCounts, draw: tuple[int, ...]) -> float:
    """By the definition, over the images of a draw."""
    rows = list(draw)
    inter = counts.intersection[rows].sum(0)
    union = counts.predicted[rows].sum(0) + counts.labelled[rows].sum(0) - inter
    return float(np.mean([inter[k] / union[k] for k in range(len(union)) if union[k]]))


def test_draws_follow_the_distribution_of_all_possible_ones() -> None:
    labelled = [[60, 40, 0], [20, 80, 0], [50, 0, 50], [90, 5, 5]]
    first = of(
        [[50, 30, 0], [15, 60, 0], [45, 0, 20], [88, 1, 0]],
        [[60, 40, 0], [35, 65, 0], [75, 0, 25], [98, 1, 1]],
        labelled,
    )
    second = of(
        [[40, 35, 0], [18, 50, 0], [40, 0, 35], [80, 3, 2]],
        [[45, 55, 0], [45, 55, 0], [55, 0, 45], [85, 8, 7]],
        labelled,
    )
    possible = sorted(miou(first, draw) - miou(second, draw) for draw in product(range(4), repeat=4))
    found = paired_differences(first, second, resamples=40_000)

    assert found.miou == pytest.approx(miou(first, (0, 1, 2, 3)) - miou(second, (0, 1, 2, 3)))
    for threshold in np.quantile(possible, [0.05, 0.25, 0.5, 0.75, 0.95]):
        expected = np.mean(np.array(possible) <= threshold + 1e-12)
        assert np.mean(found.miou_draws <= threshold + 1e-12) == pytest.approx(expected, abs=0.01)


def test_interval_of_one_class_is_that_of_a_mean() -> None:
    # Every image has 100 pixels of one class, all predicted as it or as nothing: IoU is the mean of the images' own.
    random = np.random.default_rng(0)
    hits = [random.integers(20, 90, (400, 1)) for _ in range(2)]
    first, second = (of(list(h), list(h), [[100]] * 400) for h in hits)
    found = paired_differences(first, second).miou_interval()
    differences = (hits[0] - hits[1])[:, 0] / 100
    half = 1.96 * differences.std() / np.sqrt(400)
    assert found.estimate == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(
        (differences.mean() - half, differences.mean() + half), abs=0.1 * half
    )


def test_same_predictions_differ_by_nothing() -> None:
    counts = judged(scenes())
    found = paired_differences(counts, counts)
    assert (found.miou, found.miou_interval().low, found.miou_interval().high) == (0, 0, 0)


def test_models_of_other_images_cannot_be_compared() -> None:
    counts = judged(scenes(12))
    with pytest.raises(UsageError, match=r"12 and 11, of which 11 are the same"):
        paired_differences(counts, _first(counts, 11))


def _first(counts: ImageCounts, images: int) -> ImageCounts:
    return ImageCounts(
        ids=counts.ids[:images],
        intersection=counts.intersection[:images],
        predicted=counts.predicted[:images],
        labelled=counts.labelled[:images],
    )


@pytest.mark.slow
@pytest.mark.parametrize("images", [12, 40])
def test_equally_good_models_are_told_apart_in_at_most_one_of_twenty_cases(images: int) -> None:
    trials, promoted, seen_as_worse = 400, 0, 0
    for trial in range(trials):
        labelled = scenes(images, seed=trial)
        first, second = (judged(labelled, seed=7 * trial + model + 1) for model in range(2))
        interval = paired_differences(first, second, resamples=1000, seed=trial).miou_interval()
        promoted += interval.low > 0
        seen_as_worse += interval.high < 0
    print(f"{images} images: {promoted / trials:.1%} promoted, {seen_as_worse / trials:.1%} seen as worse")
    assert 0 < promoted <= 0.05 * trials
    assert 0 < seen_as_worse <= 0.05 * trials
