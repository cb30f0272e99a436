"""One Ray for the whole test session, and the folders of real data where they are present."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on this machine, started at its first use."""
    from vitrail.cluster.runtime import ray_cluster

    with ray_cluster(num_cpus=2):
        yield


def _shared(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def ade20k_sample() -> Path:
    """Three real ADE20K validation images with their masks."""
    return _shared("ade20k_sample")


@pytest.fixture(scope="session")
def camvid() -> Path:
    """CamVid in ADE20K's layout: 367 training and 101 validation images, 11 classes."""
    return _shared("camvid")
