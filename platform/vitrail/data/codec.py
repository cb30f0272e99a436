"""Turns bytes of image files into arrays, and finds files that a decoder would silently fill in.

Images are decoded by OpenCV, as in mmsegmentation. Pixels are RGB, EXIF orientation applied.
"""

import io
import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitrail.errors import DataError

UInt8Array = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG")
"""What is decoded, whatever a file's name says: Pillow would try forty more, whose bytes nothing here checks."""
_PNG = b"\x89PNG\r\n\x1a\n"


def decode_image(data: bytes | memoryview) -> UInt8Array:
    """RGB pixels (H, W, 3) of a JPEG or PNG, turned as its EXIF orientation says.

    Raises:
        DataError: not an image that OpenCV reads.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB)


def check_image(data: bytes) -> None:
    """Read a file to its end. OpenCV decodes a truncated JPEG to grey without a word; Pillow refuses it.

    A JPEG has no checksum, and neither decoder reports the guesses that it makes inside the coded data.

    Raises:
        DataError: truncated, changed (PNG), or no image at all.
    """
    if data.startswith(_PNG):
        _check_chunks(data)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.draft("RGB", (1, 1))  # JPEG only: reads every byte, but decodes an eighth of the pixels
            image.load()
    except UnidentifiedImageError:
        raise DataError("is not a JPEG or PNG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read to its end ({error})") from None


def decode_raw_label(data: bytes) -> NDArray[np.int64]:
    """Ids (H, W) of a mask as it was published: grey of 1, 8 or 16 bits, or the indices of a palette.

    Raises:
        DataError: truncated, or a colour image.
    """
    check_image(data)
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise DataError(f"is a colour image (mode {image.mode}); a mask holds one class id per pixel")
        return np.asarray(image).astype(np.int64)


def _check_chunks(data: bytes) -> None:
    """Compare the checksum of every chunk of a PNG. Pillow stops at the last pixel, before zlib's own checksum, and
    skips the chunks' in places, so that one flipped bit could become another label."""
    position, kind = len(_PNG), b""
    while kind != b"IEND":
        if len(data) < position + 12:
            raise DataError("cannot be read to its end (image file is truncated)")
        size_bytes, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + size_bytes
        if len(data) < end + 4:
            raise DataError("cannot be read to its end (image file is truncated)")
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise DataError(f"cannot be read to its end (a chunk at byte {position:,} fails its checksum)")
        position = end + 4


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
