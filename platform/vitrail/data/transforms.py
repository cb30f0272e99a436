"""The published training pipeline as albumentations transforms, and the resize of the test pipeline.

    transform = TrainTransform(config)
    image, label, window = transform(sample.image, sample.label, sample_seed=(seed, epoch, index))

`RandomScaleCrop` and `PhotoMetricDistortion` are what albumentations lacks; both fit into any `A.Compose`.
"""

import os
import random
import threading
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for newer versions
import albumentations as A  # noqa: N812

from vitrail.config import TransformConfig
from vitrail.data.codec import UInt8Array
from vitrail.data.geometry import Window, choose_crop, crop_image, draw_crop, resize_image, scaled_size
from vitrail.data.photometric import Distortion, distort, draw_distortion


class RandomScaleCrop(A.DualTransform):  # type: ignore[misc]
    """Scale by a random ratio, then crop where no class takes too much of the crop (mmsegmentation's `RandomResize`
    and `RandomCrop(cat_max_ratio)`). An image smaller than the crop is kept whole, not padded. Targets: image, mask.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__(p=1.0)
        self.config = config
        self.window: Window
        """Of the last call."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Choose the window. The label inside is a by-product of the choice, so it is kept."""
        self.window, label = choose_crop(data["mask"], draw_crop(self.random_generator, self.config), self.config)
        return {"window": self.window, "label": label}

    def apply(self, img: UInt8Array, window: Window, **params: Any) -> UInt8Array:
        """The window of the image."""
        return crop_image(img, window)

    def apply_to_mask(self, mask: UInt8Array, label: UInt8Array, **params: Any) -> UInt8Array:
        """The window of the label."""
        return label


class PhotoMetricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Random brightness, contrast, saturation and hue in uint8, as mmsegmentation's transform of that name."""

    def __init__(self) -> None:
        super().__init__(p=1.0)

    def get_params(self) -> dict[str, Any]:
        """Draw which steps are done, and how strongly."""
        return {"distortion": draw_distortion(self.random_generator)}

    def apply(self, img: UInt8Array, distortion: Distortion, **params: Any) -> UInt8Array:
        """The distorted image."""
        return distort(img, distortion)


def train_pipeline(config: TransformConfig) -> A.Compose:
    """Scale and crop, flip, distort: an `A.Compose` to be called with `image=` and `mask=`."""
    steps: list[Any] = [RandomScaleCrop(config), A.HorizontalFlip(p=config.flip_prob)]
    return A.Compose([*steps, PhotoMetricDistortion()] if config.photometric else steps)


class TrainTransform:
    """The training pipeline as a pure function of the sample and its seed. Safe to share between threads."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self._local = threading.local()

    def __call__(
        self, image: UInt8Array, label: UInt8Array, *, sample_seed: tuple[int, ...]
    ) -> tuple[UInt8Array, UInt8Array, Window]:
        """Crops (h, w, 3) and (h, w), at most `crop_size` on each side, and where they were cut out."""
        rng = np.random.Generator(np.random.PCG64(sample_seed))
        pipeline, crop = self._pipeline()
        pipeline.set_random_state(rng, random.Random(int(rng.integers(1 << 62))))
        result = pipeline(image=image, mask=label)
        return result["image"], result["mask"], crop.window

    def _pipeline(self) -> tuple[A.Compose, RandomScaleCrop]:
        # A Compose keeps the state of its random numbers in itself, so each thread has its own.
        if not hasattr(self._local, "pipeline"):
            self._local.pipeline = train_pipeline(self.config)
        return self._local.pipeline, self._local.pipeline.transforms[0]


def resize_for_test(image: UInt8Array, config: TransformConfig) -> UInt8Array:
    """The image at the size that the network sees when testing; its label stays at the original size."""
    return resize_image(image, scaled_size((image.shape[0], image.shape[1]), config.scale))
