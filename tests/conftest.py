"""One Ray for the whole test session, and the folders of real data where they are present."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Ray reads it when it is imported, which tests may do before our own package does.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on this machine, started at its first use: two workers and a CPU beside them for Ray Data."""
    from vitrail.cluster.runtime import ray_cluster

    with ray_cluster(num_cpus=3):
        yield


@pytest.fixture(scope="session")
def run_script() -> Callable[..., tuple[int, str]]:
    """Runs a script of `jobs/` or `pipelines/` in this process, as the command line would: exit code and output."""
    import typer
    from typer.testing import CliRunner

    def run(script: str, *arguments: Any) -> tuple[int, str]:
        spec = importlib.util.spec_from_file_location(script.replace("/", "_").removesuffix(".py"), ROOT / script)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        app = getattr(module, "app", None) or typer.Typer()
        if not hasattr(module, "app"):
            app.command()(module.main)
        result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture(scope="session")
def true_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all weights of a nano recipe, random but with clear opinions; not to be changed."""
    from true_checkpoint import write_true_checkpoint

    return write_true_checkpoint(tmp_path_factory.mktemp("true"))


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


@pytest.fixture(scope="session")
def tiny_data(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 16 training and 5 validation scenes of 64 pixels, in shards of several sizes."""
    from vitrail.cluster.prepare import prepare
    from vitrail.data.scenes import draw_scenes

    root = tmp_path_factory.mktemp("tiny")
    draw_scenes(root / "scenes", train=16, val=5, size=64, seed=0)
    prepare(root / "scenes", root / "data", shard_size_bytes=16_000)
    return root / "data"
