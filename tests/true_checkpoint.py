"""A checkpoint as training writes it, with all weights of a nano recipe (12 MB); `tiny_checkpoint` has a few bytes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vitrail.checkpoint import CheckpointInfo, DataSource, ScoreRecord
from vitrail.models.segmentor import Segmentor
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.training.checkpoint import save_checkpoint


def write_true_checkpoint(
    root: Path,
    *,
    seed: int = 0,
    classes: int | Sequence[str] = 5,
    reduce_zero_label: bool = True,
    data: DataSource | None = None,
    sees_only: int | None = None,
) -> Path:
    """Folder of a new checkpoint in `root`. Weights are random, the classifier's enlarged, so that classes differ.

    `classes` is their number or their names. With `sees_only`, that class is what it sees everywhere.
    """
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else tuple(classes)
    small = ["transforms.scale=[144,48]", "model.backbone.img_size=48"]
    recipe = override(get_recipe("upernet_vit-nano_mln_128x128_1k"), small).with_classes(len(names))
    torch.manual_seed(seed)
    segmentor = Segmentor(recipe.model)
    with torch.no_grad():
        segmentor.decode_head.conv_seg.weight.mul_(20)
        if sees_only is not None:
            segmentor.decode_head.conv_seg.bias[sees_only] = 1e4
    info = CheckpointInfo(
        step=1000,
        recipe=recipe,
        classes=names,
        palette=tuple((index % 256, 90, 200) for index in range(len(names))),
        reduce_zero_label=reduce_zero_label,
        data=data or DataSource(name="streets", fingerprint="d" * 32, val_images=20, uri="s3://bucket/streets"),
        seed=seed,
        run_key=f"run-{seed}",
        scores=ScoreRecord(mIoU=0.5, mAcc=0.6, aAcc=0.8, images=20, iou=(0.5,) * len(names)),
    )
    saved = save_checkpoint(str(root), info, weights=segmentor.state_dict(), state={"step": 1000})
    assert saved.place.local is not None
    return saved.place.local
