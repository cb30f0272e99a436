"""A batch of training crops, and how one is made from places in the order: for whoever feeds a worker."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from vitrail.config import IGNORE_INDEX, TransformConfig
from vitrail.data.codec import UInt8Array
from vitrail.data.geometry import Window
from vitrail.data.shards import Sample
from vitrail.data.transforms import TrainTransform


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of N samples, padded at the bottom and right: images with 0, labels with 255."""

    images: UInt8Array
    """(N, 3, S, S), RGB."""
    labels: UInt8Array
    """(N, S, S), train ids."""
    windows: NDArray[np.int64]
    """(N, 6): height and width of the whole image as it was scaled; top, left, height and width of the crop in it."""
    ids: tuple[str, ...]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N, 2): height and width of each crop without its padding."""
        return self.windows[:, 4:]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> Self:
        """Copies of samples `start` up to `stop`."""
        return type(self)(
            images=self.images[start:stop].copy(),
            labels=self.labels[start:stop].copy(),
            windows=self.windows[start:stop].copy(),
            ids=self.ids[start:stop],
        )


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What the model sees of a sample: image (h, w, 3), train ids (h, w), and which part of the sample it is."""

    id: str
    image: UInt8Array
    label: UInt8Array
    window: Window


class SampleSource(Protocol):
    """Samples by number: a `ShardReader`, or whatever reads a source folder."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class SampleLoader:
    """Loads a sample as the model sees it in one epoch. Safe to share between threads."""

    def __init__(self, reader: SampleSource, transforms: TransformConfig, *, seed: int) -> None:
        # Parallelism is over samples: OpenCV's own threads would only fight ours for the cores.
        cv2.setNumThreads(1)
        self._reader, self._seed, self.crop_size = reader, seed, transforms.crop_size
        self._transform = TrainTransform(transforms)

    def __call__(self, epoch: int, index: int) -> Crop:
        """The crop of sample `index`, before padding.

        Raises:
            DamagedShardError: the sample's bytes are not those that were written.
        """
        sample = self._reader[index]
        seed = (self._seed, epoch, index)
        image, label, window = self._transform(sample.image, sample.label, sample_seed=seed)
        return Crop(id=sample.id, image=image, label=label, window=window)


class Assembly:
    """A batch in the making: every sample writes its own part of the arrays, at once or by a pool's threads.

    The arrays are new, or those of `into`.
    """

    def __init__(
        self,
        load: SampleLoader,
        places: list[tuple[int, int]],
        *,
        pool: ThreadPoolExecutor | None = None,
        into: dict[str, Any] | None = None,
    ) -> None:
        self._load, self._places = load, places
        arrays = into or _empty_arrays(len(places), load.crop_size)
        self._images, self._labels, self._windows = arrays["images"], arrays["labels"], arrays["windows"]
        if into:
            self._images.fill(0)
            self._labels.fill(IGNORE_INDEX)
        self._futures: list[Future[str]] = (
            [pool.submit(self._fill, slot) for slot in range(len(places))] if pool else []
        )

    def finish(self) -> Batch:
        """The batch, once its last sample is there."""
        if self._futures:
            ids = tuple(future.result() for future in self._futures)
        else:
            ids = tuple(self._fill(slot) for slot in range(len(self._places)))
        return Batch(images=self._images, labels=self._labels, windows=self._windows, ids=ids)

    def _fill(self, slot: int) -> str:
        crop = self._load(*self._places[slot])
        window = crop.window
        # Moving channels to the front is an OpenCV split: eight times as fast as a transposed copy.
        for plane, channel in zip(self._images[slot], cv2.split(crop.image), strict=True):
            plane[: window.height, : window.width] = channel
        self._labels[slot, : window.height, : window.width] = crop.label
        self._windows[slot] = (*window.scaled, window.top, window.left, window.height, window.width)
        return crop.id


def _empty_arrays(count: int, side: int) -> dict[str, Any]:
    return {
        "images": np.zeros((count, 3, side, side), np.uint8),
        "labels": np.full((count, side, side), IGNORE_INDEX, np.uint8),
        "windows": np.zeros((count, 6), np.int64),
    }
