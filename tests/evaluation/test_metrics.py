"""Scores against set arithmetic on single pixels."""

import math

import numpy as np
import pytest
import torch

from vitrail.evaluation.metrics import ConfusionMatrix


def test_scores_equal_set_arithmetic() -> None:
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, 6, (40, 50)), rng.integers(0, 6, (40, 50))
    label[rng.random(label.shape) < 0.2] = 255
    label[label == 4] = 255  # predicted, never labelled
    pred[pred == 5] = 0  # labelled, never predicted
    matrix = ConfusionMatrix(7)  # class 6 is absent from both
    matrix.update(torch.from_numpy(pred).to(torch.uint8), torch.from_numpy(label).to(torch.uint8))
    scores = matrix.scores()

    labelled = {(y, x) for y, x in np.argwhere(label != 255).tolist()}
    iou, acc = [], []
    for k in range(7):
        predicted = {p for p in labelled if pred[p] == k}
        true = {p for p in labelled if label[p] == k}
        union = predicted | true
        iou.append(len(predicted & true) / len(union) if union else math.nan)
        acc.append(len(predicted & true) / len(true) if true else math.nan)
    assert scores.iou == pytest.approx(iou, nan_ok=True)
    assert scores.acc == pytest.approx(acc, nan_ok=True)
    assert scores.miou == pytest.approx(np.nanmean(iou)) and scores.macc == pytest.approx(np.nanmean(acc))
    assert scores.aacc == pytest.approx(np.mean([pred[p] == label[p] for p in labelled]))
    assert scores.pixels == len(labelled)
    assert math.isnan(scores.iou[6]) and scores.iou[4] == 0 and math.isnan(scores.acc[4])


def test_label_out_of_range_belongs_to_the_predicted_area_alone() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 1]), torch.tensor([0, 7, 1]))
    scores = matrix.scores()
    assert scores.iou[:2].tolist() == [0.5, 1.0]
    assert (scores.aacc, scores.pixels) == (1.0, 2)


def test_merging_equals_counting_together() -> None:
    rng = np.random.default_rng(1)
    images = [torch.from_numpy(rng.integers(0, 4, (2, 9, 9))) for _ in range(4)]
    together, halves = ConfusionMatrix(4), [ConfusionMatrix(4), ConfusionMatrix(4)]
    for i, (pred, label) in enumerate(images):
        together.update(pred, label)
        halves[i % 2].update(pred, label)
    halves[0].merge(halves[1])
    assert torch.equal(halves[0].counts, together.counts)


def test_counts_stay_exact_where_float32_rounds() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**24
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    assert matrix.scores().pixels == 2**24 + 1


def test_nothing_counted_gives_nan() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(3), torch.full((3,), 255))
    scores = matrix.scores()
    assert math.isnan(scores.miou) and math.isnan(scores.aacc) and scores.pixels == 0


@pytest.mark.parametrize("pred", [[2, 1], [-1, 1], [1, 300]])
@pytest.mark.parametrize("label", [0, 255, 7])
def test_impossible_predictions_are_refused_when_the_scores_are_read(pred: list[int], label: int) -> None:
    matrix, other = ConfusionMatrix(2), ConfusionMatrix(2)
    matrix.update(torch.tensor(pred), torch.full((2,), label))
    other.merge(matrix)
    for each in (matrix, other):
        with pytest.raises(ValueError, match=r"^1 predictions are outside the classes 0\.\.1"):
            each.scores()


def test_predictions_of_another_shape_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        ConfusionMatrix(2).update(torch.tensor([0, 1]), torch.tensor([0]))


def test_counting_reads_no_value() -> None:
    # A tensor on "meta" has none; to read one on a GPU is to wait for it.
    matrix = ConfusionMatrix(5, device="meta")
    matrix.update(torch.zeros(9, 9, dtype=torch.uint8, device="meta"), torch.zeros(9, 9, device="meta"))
