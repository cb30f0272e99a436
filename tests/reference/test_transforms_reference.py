"""Resize, crop, flip and distortion against mmsegmentation's own, replayed with its recorded random numbers."""

import json
from collections.abc import Iterator
from typing import Any

import cv2
import golden
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vitrail.config import TransformConfig
from vitrail.data.geometry import CropDraw, choose_crop, crop_image, resize_image, resize_label, scaled_size
from vitrail.data.photometric import Distortion, distort
from vitrail.data.transforms import resize_for_test as resize_for_test
from vitrail.models.normalize import normalize

FILES = golden.files("transforms.json")


@pytest.fixture(params=FILES)
def content(request: pytest.FixtureRequest) -> Any:
    return json.loads(request.param.read_text())


@pytest.fixture
def source(content: Any, rules: golden.Rules) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The RGB image and the raw mask of the single operations."""
    values = content["values_input"]
    height, width = values["hw"]
    crc = values["crc32_image"]
    image = rules.stated_image(values["image_seed"], height, width, crc, noise=values["noise"])
    mask = _stated_mask(rules, values["mask_seed"], height, width, values["crc32_mask"])
    return _swap(image), mask


def test_sizes_match_mmcv(content: Any) -> None:
    for (height, width), (new_height, new_width), _ in content["resize_2048_512_keep_ratio"]:
        assert scaled_size((height, width), (2048, 512)) == (new_height, new_width)
    for size, sizes in content["resize_v0x_multiscale"]:
        for ratio, want in zip(content["ratios"], sizes, strict=True):
            assert scaled_size(tuple(size), (int(2048 * ratio), int(512 * ratio))) == tuple(want)


def test_test_image_is_resized_as_stated(content: Any) -> None:
    (height, width), want, _ = content["resize_2048_512_keep_ratio"][4]
    image = np.zeros((height, width, 3), np.uint8)
    assert resize_for_test(image, TransformConfig()).shape == (*want, 3)


@pytest.mark.parametrize("kind", ["resize_up", "resize_down", "resize_odd"])
def test_resize_is_bit_identical(content: Any, source: Any, kind: str) -> None:
    image, mask = source
    size = tuple(content[kind]["hw"])
    assert golden.crc32(_swap(resize_image(image, size))) == content[kind]["crc32_image"]
    assert golden.crc32(resize_label(mask, size)) == content[kind]["crc32_mask"]


def test_single_distortions_are_bit_identical(content: Any, source: Any) -> None:
    found = [key for key in content if key.startswith("pmd_")]
    assert found
    for key in found:
        _, operation, _, argument = key.split("_")
        value: Any = int(argument) if operation == "hue" else float(argument)
        assert golden.crc32(_swap(distort(source[0], Distortion(**{operation: value})))) == content[key], key


def test_train_pipeline_replays_recorded_draws_bit_for_bit(content: Any, rules: golden.Rules) -> None:
    for run in content["pipeline"]:
        image, mask = _pipeline_source(rules, content["pipeline_sources"][run["source"]])
        _replay(run, image, mask)


def _replay(run: Any, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    steps = {step["op"]: step for step in run["trace"]}
    resized, cropped = steps["RandomResize"], steps["RandomCrop"]
    size = tuple(resized["img_hw"])
    assert golden.crc32(_swap(resize_image(image, size))) == resized["crc32_img"]
    assert golden.crc32(resize_label(mask, size)) == resized["crc32_mask"]

    config = TransformConfig()
    tries = _crop_tries(cropped["draws"])
    draw = CropDraw(ratio=0.5 + 1.5 * resized["draws"][0][2], places=_places(tries))
    window, label = choose_crop(mask, draw, config)
    assert (window.top, window.left) == tries[-1][1], "another number of crops was refused"
    assert window.scaled == size
    crop = crop_image(image, window)
    assert golden.crc32(_swap(crop)) == cropped["crc32_img"]
    assert golden.crc32(label) == cropped["crc32_mask"]

    if steps["RandomFlip"]["flip"]:
        crop, label = cv2.flip(crop, 1), cv2.flip(label, 1)
    assert golden.crc32(_swap(crop)) == steps["RandomFlip"]["crc32_img"]
    assert golden.crc32(label) == steps["RandomFlip"]["crc32_mask"]

    out = distort(crop, _distortion(steps["PhotoMetricDistortion"]["draws"]))
    assert golden.crc32(_swap(out)) == steps["PhotoMetricDistortion"]["crc32_img"]

    height, width = label.shape
    padded_image, padded_label = np.zeros((1, 3, 512, 512), np.uint8), np.full((512, 512), 255, np.int64)
    padded_image[0, :, :height, :width], padded_label[:height, :width] = out.transpose(2, 0, 1), label
    # Our padding is -0.0 where the channel's mean is not 0; adding 0 makes it the 0.0 that the CRC is of.
    net_input = normalize(torch.from_numpy(padded_image), torch.tensor([[height, width]]))
    assert golden.crc32((net_input[0] + 0.0).numpy()) == run["crc32_net_input"]
    assert golden.crc32(padded_label) == run["crc32_net_mask"]


def _crop_tries(draws: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(choices, chosen) of each try, both as (top, left)."""
    pairs = zip(draws[0::2], draws[1::2], strict=True)
    return [((top[1][1], left[1][1]), (top[2], left[2])) for top, left in pairs]


def _places(tries: Any) -> tuple[tuple[float, float], ...]:
    """Shares that lead to the recorded offsets, filled up with a place that would be wrong: one try too many fails."""
    shares = [((y + 0.5) / rows, (x + 0.5) / columns) for (rows, columns), (y, x) in tries]
    wrong = tuple(0.0 if chosen else 0.999 for chosen in tries[-1][1])
    return tuple(shares + [wrong] * (11 - len(shares)))


def _distortion(draws: Any) -> Distortion:
    """Read the recorded calls of numpy in the order in which mmsegmentation makes them."""
    calls: Iterator[Any] = iter(draws)

    def coin() -> bool:
        name, arguments, result = next(calls)
        assert (name, arguments) == ("randint", [2])
        return bool(result)

    def value(on: bool) -> Any:
        return next(calls)[2] if on else None

    brightness = value(coin())
    contrast_first = coin()
    contrast = value(coin()) if contrast_first else None
    saturation = value(coin())
    hue = value(coin())
    if not contrast_first:
        contrast = value(coin())
    assert next(calls, None) is None
    return Distortion(
        brightness=brightness, contrast=contrast, contrast_first=contrast_first, saturation=saturation, hue=hue
    )


def _pipeline_source(rules: golden.Rules, source: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The RGB image and its train ids."""
    height, width = source["hw"]
    image = rules.stated_image(source["image_seed"], height, width, source["crc32_image"], noise=source["noise"])
    made = source["mask"]
    if isinstance(made, str):
        raw = np.full((height, width), int(made.split()[-1]), np.uint8)
        assert golden.crc32(raw) == source["crc32_raw_mask"]
    else:
        options = {"classes": made["ncls"], "grid": tuple(made["grid"])}
        raw = _stated_mask(rules, made["seed"], height, width, source["crc32_raw_mask"], **options)
    return _swap(image), np.where((raw == 0) | (raw == 255), 255, raw - 1).astype(np.uint8)


def _stated_mask(
    rules: golden.Rules, seed: int, height: int, width: int, crc: int, **options: Any
) -> NDArray[np.uint8]:
    """The mask of a seed that a golden states, with or without the folder's offset: the CRC tells which."""
    for candidate in (seed, seed - rules.seed_offset):
        if candidate + rules.seed_offset >= 0:
            mask = rules.smooth_mask(candidate, height, width, **options)
            if golden.crc32(mask) == crc:
                return mask
    raise AssertionError(f"no mask of seed {seed} (offset {rules.seed_offset}) has CRC32 {crc}")


def _swap(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB to BGR or back: the goldens are BGR."""
    return np.ascontiguousarray(image[..., ::-1])
