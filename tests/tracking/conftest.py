"""A local store that is made once and copied for every test, and checkpoints to register in it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoint import write_checkpoint

from vitrail.tracking.store import default_tracking_uri, ensure_store


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


@pytest.fixture
def store_with_models(store: str, make_checkpoint: Callable[..., Path]) -> str:
    """Address of a store with a model of three versions, of mIoU 0.5, 0.6 and 0.55."""
    from vitrail.tracking.registration import register

    for seed, miou in enumerate((0.5, 0.6, 0.55)):
        register(make_checkpoint(f"c{seed}", seed=seed, miou=miou), name="streets", tracking_uri=store)
    return store
