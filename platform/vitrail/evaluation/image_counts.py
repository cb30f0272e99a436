"""What a model got right and wrong on each image of a split, class by class. NumPy alone.

Every score follows from the sums over the images, and how sure a score is from drawing the images anew.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.evaluation.scores import Scores, scores_of

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageCounts:
    """Pixels of each of N images and K classes; pixels that are labelled "ignore" are in none of them."""

    ids: tuple[str, ...]
    """Names of the images, in the order of the split."""
    intersection: Counts
    """(N, K) predicted as they are labelled"""
    predicted: Counts
    """(N, K)"""
    labelled: Counts
    """(N, K)"""

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.intersection, self.predicted, self.labelled)}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != len(self.ids):
            raise ValueError(f"counts of {len(self.ids)} images must all be (images, classes)")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.intersection.shape[1])

    @classmethod
    def of_areas(cls, ids: Sequence[str], areas: Mapping[int, Counts]) -> "ImageCounts":
        """From `(3, K)` of each image by its index: as `ConfusionMatrix.areas`, of those images that were seen."""
        seen = sorted(areas)
        stacked = np.stack([areas[index] for index in seen]).astype(np.int64)
        return cls(
            ids=tuple(ids[index] for index in seen),
            intersection=stacked[:, 0],
            predicted=stacked[:, 1],
            labelled=stacked[:, 2],
        )

    def scores(self) -> Scores:
        """Over all images."""
        return scores_of(self.intersection.sum(0), self.predicted.sum(0), self.labelled.sum(0))

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads: NumPy's compressed archive, which runs no code."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ids=np.array(self.ids, dtype=np.str_),
            intersection=self.intersection,
            predicted=self.predicted,
            labelled=self.labelled,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> "ImageCounts":
        """Read what `to_bytes` wrote; raises a `DataError` that names `place`."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name].astype(np.int64) for name in ("intersection", "predicted", "labelled")}
                return cls(ids=tuple(map(str, archive["ids"])), **arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(f"{place} holds no counts of images ({type(error).__name__}: {error})") from error
