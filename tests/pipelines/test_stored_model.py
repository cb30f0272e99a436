"""A model and its pictures in a bucket: evaluated and used from there, with everything written there too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from s3_server import s3_server

from vitrail.cluster.predict import predict_folder
from vitrail.cluster.prepare import prepare
from vitrail.data.scenes import draw_scenes
from vitrail.evaluation.trained import open_model

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
@pytest.mark.long
def test_model_in_a_store_predicts_and_is_scored_there_as_here(
    ray_session: None, true_checkpoint: Path, tmp_path: Path
) -> None:
    draw_scenes(tmp_path / "scenes", train=2, val=3, size=48, seed=1)
    images = tmp_path / "scenes" / "images" / "validation"
    (images / "broken.png").write_bytes(b"no image")
    here = predict_folder(*open_model(true_checkpoint), images, tmp_path / "here")
    assert len(here.written) == 3
    (images / "broken.png").unlink()
    prepare(tmp_path / "scenes", tmp_path / "data")
    (images / "broken.png").write_bytes(b"no image")
    with s3_server(tmp_path) as server:
        server.upload(true_checkpoint, "bucket", "runs/step_1")
        server.upload(images, "bucket", "images")
        server.upload(tmp_path / "data", "bucket", "data")
        # Its own Ray: one that runs already has the environment of its start.
        settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings |= server.environment | {"VITRAIL_CACHE": str(tmp_path / "cache")}

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            whole = [sys.executable, *command, "--root", str(tmp_path / "runs")]
            return subprocess.run(whole, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=200)

        done = run("pipelines/predict.py", "s3://bucket/runs/step_1", "s3://bucket/images", "s3://bucket/out")
        assert done.returncode == 1, done.stderr
        assert "3 images segmented: s3://bucket/out/labels, s3://bucket/out/overlays" in done.stdout
        assert "s3://bucket/images/broken.png: " in done.stderr
        for path in sorted((tmp_path / "here" / "labels").iterdir()):
            stored = server.client().get_object(Bucket="bucket", Key=f"out/labels/{path.name}")["Body"].read()
            label = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(label, cv2.imread(str(path), cv2.IMREAD_UNCHANGED))

        evaluate = ["jobs/evaluate.py", "s3://bucket/runs/step_1", "--data", "s3://bucket/data"]
        done = run(*evaluate, "--out", "s3://bucket/scores/all.json")
        assert done.returncode == 0, done.stderr
        scores = json.loads(server.client().get_object(Bucket="bucket", Key="scores/all.json")["Body"].read())
        assert scores["images"] == 3 and f"{scores['mIoU']:.2%}" in done.stdout
