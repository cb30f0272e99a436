import numpy as np
import pytest

from vitrail.evaluation.pictures import colorize, overlay, prediction_panel

PALETTE = ((10, 200, 30), (128, 64, 128), (0, 0, 142))
CLASSES = ("sky", "road", "car")


@pytest.fixture
def label() -> np.ndarray:
    """Sky above road, with an unlabelled corner."""
    label = np.zeros((60, 80), np.uint8)
    label[30:] = 1
    label[:10, :10] = 255
    return label


def colors(picture: np.ndarray) -> set[tuple[int, int, int]]:
    return {tuple(color) for color in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_colorize_paints_each_class_and_leaves_ignored_pixels_black(label):
    painted = colorize(label, PALETTE)
    assert painted.dtype == np.uint8
    assert (painted[45, 40] == PALETTE[1]).all()
    assert (painted[20, 40] == PALETTE[0]).all()
    assert (painted[5, 5] == 0).all()


def test_overlay_mixes_by_alpha_and_keeps_the_image_where_there_is_no_label(label):
    image = np.full((60, 80, 3), 100, np.uint8)
    mixed = overlay(image, label, PALETTE, alpha=0.25)
    assert np.abs(mixed[45, 40].astype(int) - (0.75 * 100 + 0.25 * np.array(PALETTE[1]))).max() <= 1
    assert (mixed[5, 5] == 100).all()


def test_panel_marks_only_wrong_labelled_pixels_red(label):
    image = np.full((60, 80, 3), 100, np.uint8)
    prediction = np.where(label == 255, 2, label).astype(np.int64)
    red = np.array((235, 40, 40))
    right = prediction_panel(image, label, prediction, PALETTE, CLASSES)
    assert not (right == red).all(-1).any()

    prediction[50:, 60:] = 2
    wrong = prediction_panel(image, label, prediction, PALETTE, CLASSES)
    errors = wrong[240:480, 320:]
    share = (errors == red).all(-1).mean()
    assert share == pytest.approx(10 * 20 / (60 * 80), rel=0.05)


def test_legend_names_the_classes_that_occur_and_no_others(label):
    image = np.full((60, 80, 3), 100, np.uint8)
    prediction = np.where(label == 255, 2, label)
    legend = prediction_panel(image, label, prediction, PALETTE, CLASSES)[480:]
    assert {PALETTE[0], PALETTE[1]} <= colors(legend)
    assert PALETTE[2] not in colors(legend)  # predicted only where nothing is labelled

    prediction[40, 40] = 2
    assert PALETTE[2] in colors(prediction_panel(image, label, prediction, PALETTE, CLASSES)[480:])


def test_panel_copes_with_every_class_of_a_large_set_and_a_narrow_image():
    classes = tuple(f"a class with a very long name {index}" for index in range(150))
    palette = tuple((index, 255 - index, 7) for index in range(150))
    label = (np.arange(300 * 50) % 150).astype(np.uint8).reshape(300, 50)
    panel = prediction_panel(np.zeros((300, 50, 3), np.uint8), label, label, palette, classes)
    assert panel.shape[1] == 640
    assert panel.shape[0] < 900
