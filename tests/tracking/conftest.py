"""A checkpoint folder as training writes it, and a local store that is made once and copied for every test."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrail.recipes import get_recipe
from vitrail.tracking.store import default_tracking_uri, ensure_store

CLASSES = ("sky", "building", "car")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables; making one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    ensure_store(default_tracking_uri(root))
    return root / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """Address of an empty local store of the test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    return lambda name="checkpoint", **changes: write_checkpoint(tmp_path / name, **changes)


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
        "data": {"name": "streets", "fingerprint": fingerprint, "val_images": val_images},
        "seed": seed,
        "run_key": f"run-{seed}",
        "scores": None if miou is None else scores,
        "versions": {"torch": "2"},
        "files": files,
    }
    (folder / "checkpoint.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def store_with_models(store: str, make_checkpoint: Callable[..., Path]) -> str:
    """Address of a store with a model of three versions, of mIoU 0.5, 0.6 and 0.55."""
    from vitrail.tracking.registry import register

    for seed, miou in enumerate((0.5, 0.6, 0.55)):
        register(make_checkpoint(f"c{seed}", seed=seed, miou=miou), name="streets", tracking_uri=store)
    return store
