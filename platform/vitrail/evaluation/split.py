"""Scores a model on a split of a prepared data set: images in batches, decoded ahead, counted on the device.

    evaluation = evaluate_split(predictor, reader, num_classes, rank=rank, world_size=world_size)

Images that the network sees at one size go through it together, so nothing is padded and a batch computes what its
images would alone, up to the last bits of a sum.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.codec import UInt8Array
from vitrail.data.geometry import Size
from vitrail.data.shards import ShardReader
from vitrail.errors import DataError, VitrailError
from vitrail.evaluation.dealing import MAX_BATCH_PIXELS, ImageBatch, deal_batches
from vitrail.evaluation.metrics import ConfusionMatrix
from vitrail.evaluation.predictor import Evaluation, Predictor, View

_PIXELS_AHEAD = 2 * MAX_BATCH_PIXELS
"""Decoded, or being decoded, beyond the batch that the network is at; one whole batch in any case."""


class ImageCountError(VitrailError):
    """The workers together did not evaluate every image of a split exactly once."""

    def __init__(self, seen: int, expected: int) -> None:
        super().__init__(seen, expected)
        self.seen, self.expected = seen, expected

    def __str__(self) -> str:
        return f"{self.seen} images were evaluated of {self.expected}; the scores would be wrong"


@dataclass(frozen=True, kw_only=True)
class PredictedImage:
    """What a model makes of one image: train ids (H, W), predicted and true, both on the device."""

    index: int
    prediction: Tensor
    label: Tensor


def evaluate_split(
    predictor: Predictor,
    reader: ShardReader,
    num_classes: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 1,
    max_pixels: int = MAX_BATCH_PIXELS,
    on_image: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Counts, on the predictor's device, over this rank's share of the split; together the ranks have each image once.

    Waits for the device at the end alone.

    Args:
        threads: decode in that many threads, ahead of the network.
        max_pixels: of a batch, as the network sees it.
        on_image: called after each image, for whoever watches that it goes on.

    Raises:
        DataError: a sample that cannot be read; the message names it.
    """
    evaluation = Evaluation(ConfusionMatrix(num_classes, device=predictor.device))
    share = _share(predictor, reader, rank=rank, world_size=world_size, max_pixels=max_pixels)
    with closing(predict_batches(predictor, reader, share, threads=threads)) as results:
        for result in results:
            evaluation.matrix.update(result.prediction, result.label)
            evaluation.images += 1
            on_image()
    evaluation.matrix.check()
    return evaluation


def count_images(
    predictor: Predictor,
    reader: ShardReader,
    num_classes: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 1,
    max_pixels: int = MAX_BATCH_PIXELS,
) -> dict[int, NDArray[np.int64]]:
    """As `evaluate_split`, but image by image: `ConfusionMatrix.areas`, (3, K), of each by its index in the split."""
    whole = ConfusionMatrix(num_classes, device=predictor.device)
    areas: dict[int, Tensor] = {}
    share = _share(predictor, reader, rank=rank, world_size=world_size, max_pixels=max_pixels)
    with closing(predict_batches(predictor, reader, share, threads=threads)) as results:
        for result in results:
            image = ConfusionMatrix(num_classes, device=predictor.device)
            image.update(result.prediction, result.label)
            areas[result.index] = image.areas()
            whole.impossible += image.impossible
    whole.check()
    if not areas:
        return {}
    stacked = torch.stack(list(areas.values())).cpu().numpy()  # one copy for all images
    return dict(zip(areas, stacked, strict=True))


def predict_batches(
    predictor: Predictor, reader: ShardReader, batches: Iterable[ImageBatch], *, threads: int = 1
) -> Generator[PredictedImage]:
    """Predictions of all images of the batches. To be closed, also after an error, which ends the threads."""
    load = ImageLoader(predictor, reader)
    with _decoding_pool(threads) as pool:
        for batch, images in decode_ahead(pool, load, batches):
            sizes = [image.size for image in images]
            views = [np.stack(arrays) for arrays in zip(*(image.views for image in images), strict=True)]
            predictions = predictor.labels(views, sizes)
            # All labels of a batch in one copy.
            flat = predictor.to_device(np.concatenate([image.label.reshape(-1) for image in images]))
            labels = torch.split(flat, [height * width for height, width in sizes])
            for index, prediction, label in zip(batch.indices, predictions, labels, strict=True):
                yield PredictedImage(index=index, prediction=prediction, label=label.view_as(prediction))


def decode_ahead(
    pool: ThreadPoolExecutor, load: "Callable[[int], DecodedImage]", batches: Iterable[ImageBatch]
) -> Iterator[tuple[ImageBatch, "list[DecodedImage]"]]:
    """Each batch with its images; when it is handed out, the pool is at some of the next ones already."""
    ahead: deque[tuple[ImageBatch, list[Future[DecodedImage]]]] = deque()
    pixels_ahead = 0
    for batch in batches:
        ahead.append((batch, [pool.submit(load, index) for index in batch.indices]))
        pixels_ahead += batch.pixels
        while len(ahead) > 1 and pixels_ahead > _PIXELS_AHEAD:
            first, futures = ahead.popleft()
            pixels_ahead -= first.pixels
            yield first, [future.result() for future in futures]
    for first, futures in ahead:
        yield first, [future.result() for future in futures]


def _share(
    predictor: Predictor, reader: ShardReader, *, rank: int, world_size: int, max_pixels: int
) -> list[ImageBatch]:
    """The batches of one rank; together the ranks have each image once."""
    return deal_batches(
        reader.sizes,
        predictor.view_sizes,
        world_size=world_size,
        max_pixels=max_pixels,
        max_images=predictor.max_images,
    )[rank]


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image as the network is to see it, and its train ids (H, W) at the original size."""

    views: list[View]
    label: UInt8Array

    @property
    def size(self) -> Size:
        """(H, W) of the original."""
        return self.label.shape[0], self.label.shape[1]


class ImageLoader:
    """Decodes and resizes images of a split. Safe to share between threads."""

    def __init__(self, predictor: Predictor, reader: ShardReader) -> None:
        # Parallelism is over images: OpenCV's own threads would only fight ours for the cores.
        cv2.setNumThreads(1)
        self._predictor, self._reader = predictor, reader

    def __call__(self, index: int) -> DecodedImage:
        """Image `index`.

        Raises:
            DataError: its bytes are not those that were written, or no image of the size that is on record.
        """
        encoded = self._reader.encoded(index)
        where = f"sample {encoded.id!r} of {self._reader.folder}, split {self._reader.split!r},"
        try:
            sample = encoded.decode()
        except DataError as error:
            raise DataError(f"{where} {error}; run pipelines/prepare.py again") from error
        if sample.image.shape[:2] != encoded.size:
            raise DataError(
                f"{where} has {sample.image.shape[0]} x {sample.image.shape[1]} pixels in place of "
                f"{encoded.size[0]} x {encoded.size[1]}; run pipelines/prepare.py again"
            )
        return DecodedImage(views=self._predictor.views(sample.image), label=sample.label)


@contextmanager
def _decoding_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
