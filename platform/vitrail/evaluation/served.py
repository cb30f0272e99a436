"""A trained model behind one call: images as clients send them in, label maps that JSON can carry out.

    served = ServedModel.open(Path("runs/camvid/checkpoints/step_001000"))
    served.predict([jpeg_bytes, base64_text, array])[0].label_map_png

This module and what it imports travel inside every registered version (`vitrail.tracking.served_model`), so it imports
no more than inference needs.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from vitrail.checkpoint import CheckpointInfo
from vitrail.data.codec import UInt8Array, check_image, decode_image
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.predictor import Predictor
from vitrail.models.restored import restore_segmentor


class ServedImageError(UsageError):
    """One of the images that a client sent cannot be segmented; `number` counts from 1."""

    def __init__(self, number: int, count: int, reason: str) -> None:
        super().__init__(number, count, reason)
        self.number, self.count, self.reason = number, count, reason

    def __str__(self) -> str:
        return (
            f"image {self.number} of {self.count} {self.reason}; send the bytes of a JPEG or PNG file, their base64 "
            "text, or an RGB array (height, width, 3) of uint8"
        )


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What became of one image."""

    label_map_png: str
    """Base64 text of a PNG of raw ids, as the data set numbers its classes; 8 bits, or 16 where ids pass 255."""
    height: int
    width: int
    class_pixels: str
    """JSON: the pixels of each class that occurs, by its name, the largest first."""


class ServedModel:
    """A network with its recipe's way of testing; may be called from many threads."""

    def __init__(self, predictor: Predictor, info: CheckpointInfo) -> None:
        self._predictor = predictor
        self._info = info

    @classmethod
    def open(cls, checkpoint: Path) -> "ServedModel":
        """The model of a checkpoint's folder, on the GPU where there is one.

        Raises:
            CheckpointError: a file does not match its checksum.
        """
        model, info = restore_segmentor(checkpoint)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(Predictor(model.to(device), info.recipe, device), info)

    def predict(self, images: Sequence[Any]) -> list[Segmented]:
        """Segment images of any sizes, each by itself, so that none depends on what it came with.

        Raises:
            ServedImageError: one of them cannot be read; names it.
        """
        segmented = []
        for number, image in enumerate(images, start=1):
            try:
                pixels = _pixels(image)
            except DataError as error:
                raise ServedImageError(number, len(images), str(error)) from error
            segmented.append(self._segment(pixels))
        return segmented

    def _segment(self, image: UInt8Array) -> Segmented:
        """(H, W, 3)"""
        size = (image.shape[0], image.shape[1])
        views = [view[None] for view in self._predictor.views(image)]
        label = self._predictor.labels(views, [size])[0].cpu().numpy()
        return Segmented(
            label_map_png=base64.b64encode(self._png(label)).decode(),
            height=size[0],
            width=size[1],
            class_pixels=json.dumps(self._class_pixels(label)),
        )

    def _png(self, label: Any) -> bytes:
        """Of train ids (H, W), int64."""
        shift = int(self._info.reduce_zero_label)
        largest = len(self._info.classes) - 1 + shift
        ok, encoded = cv2.imencode(".png", (label + shift).astype(np.uint8 if largest <= 255 else np.uint16))
        assert ok
        return encoded.tobytes()

    def _class_pixels(self, label: Any) -> dict[str, int]:
        counts = np.bincount(label.ravel())
        order = np.argsort(-counts, kind="stable")
        return {self._info.classes[index]: int(counts[index]) for index in order if counts[index]}


def _pixels(image: Any) -> UInt8Array:
    """RGB (H, W, 3) of what a client sent; raises a `DataError` that says what is wrong with it."""
    if isinstance(image, str):
        image = _decoded_text(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        try:
            check_image(data)
            return decode_image(data)
        except DataError as error:
            raise DataError(f"is not a JPEG or PNG that can be decoded: it {error}") from error
    if isinstance(image, (np.ndarray, list)):  # JSON has lists alone
        return _checked(image)
    raise DataError(f"is of type {type(image).__name__}")


def _decoded_text(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"is a text that is not base64 ({error})") from None


def _checked(values: Any) -> UInt8Array:
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError("is a list whose rows differ in length") from None
    if isinstance(values, list) and array.dtype.kind in "iu" and array.size and 0 <= array.min() <= array.max() <= 255:
        array = array.astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(f"is an array {array.shape} of {array.dtype}")
    return np.ascontiguousarray(array)
