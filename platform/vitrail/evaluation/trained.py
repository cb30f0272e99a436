"""A trained model from where it lies: a checkpoint's folder, or a file that `vitrail weights import` wrote.

segmentor, described = open_model(Path("runs/camvid/checkpoints/step_001000"))
labels = Predictor(segmentor, described.recipe)(image)      # (H, W, 3) uint8 RGB -> (H, W) train ids
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.checkpoint import WEIGHTS
from vitrail.config import Recipe
from vitrail.data import ade20k
from vitrail.data.layout import Colour, distinct_colours
from vitrail.errors import UsageError
from vitrail.models.convert import open_segmentor
from vitrail.models.restored import restore_segmentor
from vitrail.models.segmentor import Segmentor
from vitrail.overrides import override


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What a trained model's labels mean, and how it is tested."""

    title: str
    recipe: Recipe
    classes: tuple[str, ...] | None
    """None where a file of weights does not tell."""
    palette: tuple[Colour, ...]
    reduce_zero_label: bool
    """Whether train id i stands for raw id i + 1."""
    weights: Path | None = None
    """The file that they were read from."""
    step: int | None = None
    data_fingerprint: str | None = None
    """Of the data set that it was trained on; None, as `step`, where a file of weights does not tell."""

    def tested_as(self, changes: Sequence[str]) -> "TrainedModel":
        """The same model with `path.to.field=value` of its recipe changed, for fields that matter in testing alone.

        Raises:
            UsageError: a field that does not exist, or one that the trained weights have decided.
        """
        recipe = override(self.recipe, changes)
        free = {"inference", "ms_flip", "transforms"}
        decided = [name for name in Recipe.model_fields if name not in free]
        changed = [name for name in decided if getattr(recipe, name) != getattr(self.recipe, name)]
        if changed:
            raise UsageError(
                f"{', '.join(changed)} cannot be set for a trained model; only inference, ms_flip and transforms.scale"
            )
        return replace(self, recipe=recipe)


def open_model(path: Path) -> tuple[Segmentor, TrainedModel]:
    """The model in eval mode on the CPU, checked against its checksums where it has any, and what it is.

    A file of 150 classes is taken for one of ADE20K.

    Raises:
        UsageError: neither a checkpoint nor an imported file of a whole model.
        CheckpointError: a checkpoint that is damaged.
    """
    if path.is_dir() or not path.exists():
        return _open_checkpoint(path)
    segmentor, recipe = open_segmentor(path)
    count = segmentor.config.num_classes
    of_ade20k = count == len(ade20k.CLASSES)
    described = TrainedModel(
        title=f"{recipe.name}, {path.name}",
        recipe=recipe,
        classes=ade20k.CLASSES if of_ade20k else None,
        palette=ade20k.PALETTE if of_ade20k else distinct_colours(count),
        reduce_zero_label=of_ade20k,
        weights=path,
    )
    return segmentor, described


def _open_checkpoint(folder: Path) -> tuple[Segmentor, TrainedModel]:
    model, info = restore_segmentor(folder)
    described = TrainedModel(
        title=f"{info.recipe.name}, step {info.step}",
        recipe=info.recipe,
        classes=info.classes,
        palette=info.palette,
        reduce_zero_label=info.reduce_zero_label,
        weights=folder / WEIGHTS,
        step=info.step,
        data_fingerprint=info.data.fingerprint,
    )
    return model, described
