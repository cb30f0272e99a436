"""Turns bytes of image files into arrays and back, and finds files that a decoder would silently fill in.

Images are decoded by OpenCV, as in mmsegmentation. Pixels are RGB, EXIF orientation applied.
"""

import io
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitrail.errors import DataError

UInt8Array = NDArray[np.uint8]

# Five times as fast to decode as PNG, and smaller. The level costs time in writing alone.
_ZSTD = pa.Codec("zstd", 9)


def decode_image(data: bytes | memoryview) -> UInt8Array:
    """RGB pixels (H, W, 3) of a JPEG or PNG, turned as its EXIF orientation says.

    Raises:
        DataError: not an image that OpenCV reads.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB)


def decode_label(data: Any, size: tuple[int, int]) -> UInt8Array:
    """Train ids (H, W) of the given size, from the bytes or buffer that `encode_label` made."""
    pixels = _ZSTD.decompress(data, size[0] * size[1])
    return np.frombuffer(pixels, np.uint8).reshape(size)


def encode_label(label: UInt8Array) -> bytes:
    """A label map (H, W) compressed with Zstandard; the same bytes for the same labels."""
    return bytes(_ZSTD.compress(np.ascontiguousarray(label), asbytes=True))


def check_image(data: bytes) -> None:
    """Read a file to its end. OpenCV decodes a truncated JPEG to grey without a word; Pillow refuses it.

    Raises:
        DataError: truncated, or no image at all.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (1, 1))  # JPEG only: reads every byte, but decodes an eighth of the pixels
            image.load()
    except UnidentifiedImageError:
        raise DataError("is not an image file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read to its end ({error})") from None


def decode_raw_label(data: bytes) -> NDArray[np.int64]:
    """Ids (H, W) of a mask as it was published: grey of 1, 8 or 16 bits, or the indices of a palette.

    Raises:
        DataError: truncated, or a colour image.
    """
    check_image(data)
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise DataError(f"is a colour image (mode {image.mode}); a mask holds one class id per pixel")
        return np.asarray(image).astype(np.int64)


def _decode(data: bytes | memoryview, flags: int) -> UInt8Array:
    if not len(data):
        raise DataError("is empty")
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"cannot be decoded ({error.err})") from None
    if array is None:
        raise DataError("cannot be decoded")
    return np.asarray(array, dtype=np.uint8)
