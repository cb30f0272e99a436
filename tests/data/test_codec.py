"""Decoding agrees with the source, turns as EXIF says, and refuses what is not whole."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.codec import check_image, decode_image, decode_raw_label
from vitrail.data.label_codec import decode_label, encode_label
from vitrail.errors import DataError


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (3, 5, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def test_png_image_decodes_to_the_same_rgb(picture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode_image(_saved(Image.fromarray(picture), "PNG")), picture)


def test_grey_image_becomes_three_channels(picture: NDArray[np.uint8]) -> None:
    grey = picture[..., 0]
    np.testing.assert_array_equal(
        decode_image(_saved(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, axis=2)
    )


def test_exif_orientation_is_applied(picture: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    turned = decode_image(_saved(Image.fromarray(picture), "JPEG", exif=exif, quality=95))
    assert turned.shape == (40, 24, 3)
    difference = np.rot90(turned).astype(int) - decode_image(_saved(Image.fromarray(picture), "JPEG", quality=95))
    assert np.abs(difference).max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_image_is_refused(picture: NDArray[np.uint8], kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = _saved(Image.fromarray(noise), kind)
    check_image(data)
    for share in (0.3, 0.6, 0.98):
        with pytest.raises(DataError):
            check_image(data[: int(len(data) * share)])


def test_other_formats_are_refused_whatever_the_name_says(picture: NDArray[np.uint8]) -> None:
    for kind in ("BMP", "TIFF", "GIF"):
        with pytest.raises(DataError, match="is not a JPEG or PNG file"):
            check_image(_saved(Image.fromarray(picture[..., 0]), kind))


def test_what_is_no_image_is_refused() -> None:
    for data in (b"", b"GIF", b"\xff\xd8\xff\xe0junk"):
        with pytest.raises(DataError):
            check_image(data)
        with pytest.raises(DataError):
            decode_image(data)


def test_label_survives_encoding() -> None:
    label = np.random.default_rng(2).integers(0, 256, (37, 53), dtype=np.uint8)
    np.testing.assert_array_equal(decode_label(encode_label(label), label.shape), label)


def test_raw_labels_are_read_from_grey_palette_and_16_bits() -> None:
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    palette = Image.fromarray(ids, "P")
    palette.putpalette([200, 10, 10] * 256)
    for image in (Image.fromarray(ids), palette, Image.fromarray(ids.astype(np.uint16))):
        np.testing.assert_array_equal(decode_raw_label(_saved(image, "PNG")), ids)


def test_colour_mask_is_refused() -> None:
    for mode in ("RGB", "RGBA", "LA"):
        with pytest.raises(DataError, match=f"is a colour image \\(mode {mode}\\)"):
            decode_raw_label(_saved(Image.new(mode, (4, 4)), "PNG"))
