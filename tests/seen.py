"""What a batch shows of its samples, in a form that two batches can be compared by."""

import zlib

from vitrail.data.batch import Batch

Seen = tuple[str, tuple[int, ...], int]
"""Id, window and CRC32 of pixels and labels of one sample of a batch."""


def seen(batch: Batch) -> list[Seen]:
    """Every sample of the batch, in order."""
    return [
        (name, tuple(window.tolist()), zlib.crc32(label.tobytes(), zlib.crc32(image.tobytes())))
        for name, window, image, label in zip(batch.ids, batch.windows, batch.images, batch.labels, strict=True)
    ]
