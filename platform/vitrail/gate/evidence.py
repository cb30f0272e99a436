"""What the gate is told of a version: where it comes from, what it gets right on each image, what predicting costs."""

from dataclasses import asdict, dataclass
from typing import Any

from vitrail.evaluation.image_counts import ImageCounts
from vitrail.evaluation.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a version comes from; None for what is not recorded."""

    recipe: str | None
    recipe_digest: str | None
    data_fingerprint: str | None
    code: str | None
    """The revision of the code that trained it."""
    start: str | None
    """Which weights training started from."""
    weights_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class PredictionCost:
    """What predicting one image at a time costs, measured alone on one device."""

    images_per_s: float
    peak_memory_gib: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a version."""

    name: str
    version: int
    lineage: Lineage
    counts: ImageCounts | None
    """On the judging images; None where it was not evaluated."""
    cost: PredictionCost | None

    @property
    def scores(self) -> Scores:
        """Over all images; there must be counts."""
        assert self.counts is not None
        return self.counts.scores()

    def class_shares(self) -> list[float]:
        """Of the labelled pixels, per class; there must be counts."""
        assert self.counts is not None
        areas = self.counts.labelled.sum(0)
        return [float(area) / max(1, int(areas.sum())) for area in areas]

    def summary(self) -> dict[str, Any]:
        """All but the counts, as plain values."""
        scores = None if self.counts is None else self.scores
        return {
            "name": self.name,
            "version": self.version,
            "mIoU": None if scores is None else scores.miou,
            "mAcc": None if scores is None else scores.macc,
            "aAcc": None if scores is None else scores.aacc,
            "images": None if self.counts is None else len(self.counts),
            "lineage": asdict(self.lineage),
            "cost": None if self.cost is None else asdict(self.cost),
        }


@dataclass(frozen=True, kw_only=True)
class JudgedOn:
    """The images of a judgement: the validation split of a data set."""

    name: str
    fingerprint: str
    images: int
    classes: tuple[str, ...]
