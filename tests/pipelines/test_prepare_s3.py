"""`pipelines/prepare.py` from a bucket to a bucket: its own Ray, whose workers get the store from the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import s3_server

from vitrail.cluster.prepare import prepare
from vitrail.data.manifest import Manifest
from vitrail.data.scenes import draw_scenes

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_prepare_from_store_to_store_equals_prepare_on_a_disk(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_scenes(tmp_path / "scenes", train=4, val=2, size=48, seed=1)
    here = prepare(tmp_path / "scenes", tmp_path / "out")
    # A Ray that runs already has the environment of its start, so the script runs beside it, as a user's would.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with s3_server(tmp_path) as server:
        server.upload(tmp_path / "scenes", "bucket", "source/scenes")
        command = [sys.executable, "pipelines/prepare.py", "s3://bucket/source/scenes", "s3://bucket/out"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment | server.environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert f"s3://bucket/out is ready: fingerprint {here.fingerprint}" in done.stdout
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        there = Manifest.load("s3://bucket/out")
        assert there.model_copy(update={"source_signature": here.source_signature}) == here
        for path in sorted((tmp_path / "out").glob("*.arrow")):
            stored = server.client().get_object(Bucket="bucket", Key=f"out/{path.name}")["Body"].read()
            assert stored == path.read_bytes()
