"""A checkpoint folder as training writes it, with weights of a few bytes."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from vitrail.recipes import get_recipe

CLASSES = ("sky", "building", "car")


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    miou: float | None = 0.5,
    fingerprint: str = "d" * 32,
    images: int = 20,
    val_images: int = 20,
) -> Path:
    """A complete checkpoint of tiny weights; other seeds make other weights."""
    folder.mkdir()
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    save_file({"decode_head.conv_seg.weight": weights}, folder / "model.safetensors")
    (folder / "state.pt").write_bytes(b"optimiser")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "state.pt")
    }
    scores = {"mIoU": miou, "mAcc": 0.6, "aAcc": 0.8, "images": images, "iou": [miou, 0.25, None]}
    description = {
        "format_version": 1,
        "step": 250,
        "recipe": get_recipe("upernet_vit-nano_mln_128x128_1k").with_classes(3).model_dump(mode="json"),
        "classes": CLASSES,
        "palette": [[70, 130, 180], [128, 64, 64], [0, 0, 142]],
        "reduce_zero_label": False,
        "data": {"name": "streets", "fingerprint": fingerprint, "val_images": val_images, "uri": "s3://bucket/streets"},
        "seed": seed,
        "run_key": f"run-{seed}",
        "scores": None if miou is None else scores,
        "versions": {"torch": "2", "code": "0123abc+changes"},
        "files": files,
    }
    (folder / "checkpoint.json").write_text(json.dumps(description))
    return folder
