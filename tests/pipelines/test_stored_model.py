"""Models, pictures and data in a bucket: used, scored, compared and examined there, with everything written there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from s3_server import s3_server
from true_checkpoint import write_true_checkpoint

from vitrail.cluster.predict import predict_folder
from vitrail.cluster.prepare import prepare
from vitrail.data.scenes import CLASSES, draw_scenes
from vitrail.evaluation.trained import open_model

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_model_in_a_store_predicts_and_is_scored_there_as_here(ray_session: None, tmp_path: Path) -> None:
    draw_scenes(tmp_path / "scenes", train=2, val=3, size=48, seed=1)
    checkpoint, other = (write_true_checkpoint(tmp_path / f"true{seed}", classes=CLASSES, seed=seed) for seed in (0, 1))
    images = tmp_path / "scenes" / "images" / "validation"
    (images / "broken.png").write_bytes(b"no image")
    here = predict_folder(*open_model(checkpoint), images, tmp_path / "here")
    assert len(here.written) == 3
    (images / "broken.png").unlink()
    prepare(tmp_path / "scenes", tmp_path / "data")
    (images / "broken.png").write_bytes(b"no image")
    with s3_server(tmp_path) as server:
        server.upload(checkpoint, "bucket", "runs/step_1")
        server.upload(other, "bucket", "runs/step_2")
        server.upload(images, "bucket", "images")
        server.upload(tmp_path / "data", "bucket", "data")
        # Its own Ray: one that runs already has the environment of its start.
        settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings |= server.environment | {"VITRAIL_CACHE": str(tmp_path / "cache")}

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=200)

        def stored(name: str) -> bytes:
            return server.client().get_object(Bucket="bucket", Key=name)["Body"].read()

        root = ["--root", str(tmp_path / "runs")]

        done = run(
            sys.executable,
            "pipelines/predict.py",
            "s3://bucket/runs/step_1",
            "s3://bucket/images",
            "s3://bucket/out",
            *root,
        )
        assert done.returncode == 1, done.stderr
        assert "3 images segmented: s3://bucket/out/labels, s3://bucket/out/overlays" in done.stdout
        assert "s3://bucket/images/broken.png: " in done.stderr
        for path in sorted((tmp_path / "here" / "labels").iterdir()):
            label = cv2.imdecode(np.frombuffer(stored(f"out/labels/{path.name}"), np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(label, cv2.imread(str(path), cv2.IMREAD_UNCHANGED))

        evaluate = [sys.executable, "jobs/evaluate.py", "s3://bucket/runs/step_1", "--data", "s3://bucket/data"]
        done = run(*evaluate, "--out", "s3://bucket/scores/all.json", *root)
        assert done.returncode == 0, done.stderr
        scores = json.loads(stored("scores/all.json"))
        assert scores["images"] == 3 and f"{scores['mIoU']:.2%}" in done.stdout
        assert scores["aAcc"] == pytest.approx(_right(tmp_path / "here" / "labels", tmp_path / "scenes"), abs=1e-4)

        compare = [
            str(Path(sys.executable).with_name("vitrail")),
            "models",
            "compare",
            "s3://bucket/runs/step_1",
            "s3://bucket/runs/step_2",
        ]
        done = run(*compare, "--data", "s3://bucket/data", "--pictures", "1", "--out", "s3://bucket/disputed", *root)
        assert done.returncode == 0, done.stderr
        objects = server.client().list_objects_v2(Bucket="bucket", Prefix="disputed/")["Contents"]
        (picture,) = [each["Key"] for each in objects if not each["Key"].endswith("/")]  # pyarrow's folder is one
        assert cv2.imdecode(np.frombuffer(stored(picture), np.uint8), cv2.IMREAD_COLOR) is not None

        done = run(sys.executable, "pipelines/doctor.py", "s3://bucket/data", "--out", "s3://bucket/doctor")
        assert "s3://bucket/doctor/report.html" in done.stdout + done.stderr
        assert stored("doctor/report.html").startswith(b"<!")
        assert json.loads(stored("doctor/report.json"))["subject"]["name"] == "scenes"
    assert not list(ROOT.glob("s3:*"))


def _right(labels: Path, scenes: Path) -> float:
    """Share of the labelled pixels whose predicted raw id is the mask's."""
    pairs = [
        (cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))
        for path in sorted(labels.iterdir())
        for mask in [scenes / "annotations" / "validation" / path.name]
    ]
    right = sum(int(((label == mask) & (mask > 0)).sum()) for label, mask in pairs)
    return right / sum(int((mask > 0).sum()) for _, mask in pairs)
