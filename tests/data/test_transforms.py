"""The training transforms: windows without waste, the crop rule, and randomness that comes from the seed alone."""

import albumentations
import numpy as np
import pytest
from numpy.typing import NDArray

from vitrail.config import TransformConfig
from vitrail.data.geometry import CropDraw, choose_crop, crop_image, draw_crop, resize_image, resize_label, scaled_size
from vitrail.data.photometric import Distortion, distort, draw_distortion
from vitrail.data.transforms import PhotoMetricDistortion, RandomScaleCrop, TrainTransform

SMALL = TransformConfig(scale=(256, 64), crop_size=64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _noise(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    label = rng.integers(0, 5, (height, width), dtype=np.uint8)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), label


def test_crop_equals_resizing_everything_and_cropping_after(rng: np.random.Generator) -> None:
    for _ in range(200):
        image, label = _noise(rng, *rng.integers(20, 200, 2).tolist())
        window, crop = choose_crop(label, draw_crop(rng, SMALL), SMALL)
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        np.testing.assert_array_equal(crop_image(image, window), resize_image(image, window.scaled)[rows, columns])
        np.testing.assert_array_equal(crop, resize_label(label, window.scaled)[rows, columns])
        assert crop.shape == (min(64, window.scaled[0]), min(64, window.scaled[1]))


def test_crop_is_drawn_again_while_one_class_fills_it() -> None:
    label = np.zeros((64, 256), np.uint8)
    label[:, 128:] = 1
    left, both, right = ((0.0, 0.0), (0.0, 0.5), (0.0, 0.999))
    config = TransformConfig(scale=(256, 64), crop_size=64, ratio_range=(1.0, 1.0), cat_max_ratio=0.75)

    def chosen_left(*places: tuple[float, float]) -> int:
        return choose_crop(label, CropDraw(ratio=1.0, places=places), config)[0].left

    assert chosen_left(left, right, both, left) == 96
    assert chosen_left(left, right, left) == 0, "the last is taken as it is"
    label[:, 128:] = 255
    assert chosen_left(both, right, left) == 0, "ignored pixels are no class"


def test_offsets_reach_both_edges_and_no_further(rng: np.random.Generator) -> None:
    config = TransformConfig(scale=(80, 70), crop_size=64, ratio_range=(1.0, 1.0), cat_max_ratio=1.0)
    label = np.zeros((70, 80), np.uint8)
    windows = [choose_crop(label, draw_crop(rng, config), config)[0] for _ in range(400)]
    assert {window.top for window in windows} == set(range(7))
    assert {window.left for window in windows} == set(range(17))


def test_extreme_aspect_keeps_a_pixel() -> None:
    assert scaled_size((1, 5000), (2048, 512)) == (1, 2048)


def test_distortion_draws_have_the_published_ranges(rng: np.random.Generator) -> None:
    draws = [draw_distortion(rng) for _ in range(4000)]
    for name, low, high in [("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)]:
        values = [value for d in draws if (value := getattr(d, name)) is not None]
        assert abs(len(values) / len(draws) - 0.5) < 0.05
        assert low <= min(values) < low + 0.02 * (high - low) and high >= max(values) > high - 0.02 * (high - low)
    assert {d.hue for d in draws} == {None, *range(-18, 18)}
    assert abs(sum(d.contrast_first for d in draws) / len(draws) - 0.5) < 0.05


def test_distortion_truncates_each_step() -> None:
    image = np.array([[[0, 101, 255]]], np.uint8)
    # 101 * 0.5 = 50.5 -> 50, + 20.9 = 70.9 -> 70; the order decides: (101 + 20.9 -> 121) * 0.5 = 60.5 -> 60
    last = distort(distort(image, Distortion(contrast=0.5)), Distortion(brightness=20.9))
    assert last.tolist() == [[[20, 70, 147]]]
    assert distort(image, Distortion(brightness=20.9, contrast=0.5)).tolist() == [[[10, 60, 127]]]
    assert distort(image, Distortion()) is image


def test_transform_depends_on_the_sample_seed_alone(rng: np.random.Generator) -> None:
    image, label = _noise(rng, 90, 120)
    first, second = TrainTransform(SMALL), TrainTransform(SMALL)
    want = first(image, label, sample_seed=(0, 3, 8))
    for _ in range(5):
        first(image, label, sample_seed=(1, 2, 3))
    for transform in (first, second):
        got = transform(image, label, sample_seed=(0, 3, 8))
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    assert not np.array_equal(first(image, label, sample_seed=(0, 4, 8))[0], want[0])


def test_image_and_label_move_together(rng: np.random.Generator) -> None:
    label = np.kron(rng.integers(0, 200, (6, 8), dtype=np.uint8), np.ones((20, 20), np.uint8))
    config = TransformConfig(scale=(160, 120), crop_size=64, ratio_range=(1.0, 1.0), photometric=False)
    flips = 0
    for seed in range(40):
        image, crop, _ = TrainTransform(config)(np.repeat(label[..., None], 3, 2), label, sample_seed=(seed,))
        np.testing.assert_array_equal(image[..., 1], crop)
        windows = np.lib.stride_tricks.sliding_window_view(label, (64, 64))
        flips += not (windows == crop).all(axis=(2, 3)).any()
    assert 10 <= flips <= 30


def test_transforms_fit_into_a_compose_of_the_users_own(rng: np.random.Generator) -> None:
    image, label = _noise(rng, 90, 120)
    pipeline = albumentations.Compose(
        [RandomScaleCrop(SMALL), albumentations.GaussianBlur(p=1.0), PhotoMetricDistortion()], seed=3
    )
    result = pipeline(image=image, mask=label)
    assert result["image"].shape[:2] == result["mask"].shape
