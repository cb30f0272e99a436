"""Turns bytes of image files into arrays and back, and finds files that a decoder would silently fill in.

Images are decoded by OpenCV, as in mmsegmentation; masks are written as PNG. Pixels are RGB, EXIF orientation applied.
"""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitrail.errors import DataError

UInt8Array = NDArray[np.uint8]

# Unfiltered and lightly deflated, label maps decode four times as fast as with libpng's defaults.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


def decode_image(data: bytes | memoryview) -> UInt8Array:
    """RGB pixels (H, W, 3) of a JPEG or PNG, turned as its EXIF orientation says.

    Raises:
        DataError: not an image that OpenCV reads.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB)


def decode_label(data: bytes | memoryview) -> UInt8Array:
    """Train ids (H, W) of a PNG made by `encode_label`."""
    return _decode(data, cv2.IMREAD_UNCHANGED)


def encode_label(label: UInt8Array) -> bytes:
    """PNG of a label map (H, W); the same bytes for the same labels."""
    _, data = cv2.imencode(".png", label, _PNG_OPTIONS)
    return data.tobytes()


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
