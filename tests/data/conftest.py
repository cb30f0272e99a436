"""A few drawn scenes, and the data set made of them without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitrail.data.layout import read_layout
from vitrail.data.manifest import Manifest
from vitrail.data.scenes import draw_scenes
from vitrail.data.shard_writer import assemble_manifest, plan_shards, write_shard

WriteDataset = Callable[..., Manifest]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 training and 3 validation scenes of 72 x 72 pixels; not to be changed."""
    folder = tmp_path_factory.mktemp("source") / "scenes"
    draw_scenes(folder, train=13, val=3, size=72, seed=5)
    return folder


@pytest.fixture
def own_scenes(tmp_path: Path) -> Path:
    """Three training scenes and one validation scene that a test may spoil."""
    folder = tmp_path / "scenes"
    draw_scenes(folder, train=3, val=1, size=48, seed=6)
    return folder


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """Prepare a folder in this process: `write_dataset(src, dst, shard_size_bytes=...)`."""

    def write(src: Path, dst: Path, *, shard_size_bytes: int = 20_000) -> Manifest:
        dst.mkdir(exist_ok=True)
        layout = read_layout(src)
        plans = plan_shards(layout, shard_size_bytes=shard_size_bytes)
        manifest = assemble_manifest(layout, plans, [write_shard(plan, source=src, folder=dst) for plan in plans])
        manifest.save(dst)
        return manifest

    return write


@pytest.fixture(scope="session")
def dataset(scenes: Path, tmp_path_factory: pytest.TempPathFactory, write_dataset: WriteDataset) -> Path:
    """The prepared scenes, in several shards; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared") / "scenes"
    write_dataset(scenes, folder)
    return folder
