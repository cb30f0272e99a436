"""Secrets on their way to MLflow: not in its database or files, not in the run's folder, and not in what is said."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_server import Started

from vitrail.tracking.environment import connect
from vitrail.tracking.server_auth import load_secrets
from vitrail.tracking.tracker import start_run

ROOT = Path(__file__).parents[2]
SIZES = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
SIZES += ["model.backbone.img_size=64", "val_interval=2"]


def holding(folder: Path, secret: str) -> list[str]:
    """The files below a folder that hold a secret."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_nothing_that_a_run_logs_holds_a_secret(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "hunter2-in-the-environment")
    address, key = "s3://key:hunter2@bucket/x", "hunter2-in-the-environment"
    tracker = start_run(
        tracking_uri=store,
        experiment="e",
        run_name="r",
        run_key="key",
        folder=tmp_path / "run",
        params={"data": address, "lr": 1e-3},
        tags={"vitrail.data_uri": address, "mlflow.source.name": f"train.py --key {key}"},
    )
    tracker.set_tags({"later": f"https://b/x?X-Amz-Signature={key}"})
    tracker.log_text(f"said {key}", "said.txt")
    tracker.log_dict({"a": {"b": address}}, "config.json")
    tracker.log_table({"where": [address], "IoU": [0.5]}, "tables/t.json")
    tracker.log_dataset("d", digest="f", context="train", source=address)
    assert tracker.finish()
    run = connect(store).get_run(tracker.run_id)
    assert run.data.params == {"data": "s3://key:***@bucket/x", "lr": "0.001"}
    assert run.data.tags["mlflow.source.name"] == "train.py --key ***"
    assert {path.name for path in tmp_path.rglob("*.*")} >= {"said.txt", "config.json", "t.json", "mlflow.db"}
    assert holding(tmp_path, "hunter2") == []


def test_tracking_that_fails_does_not_say_the_password(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        tracker = start_run(
            tracking_uri="http://ada:hunter2@127.0.0.1:1", experiment="e", run_name="r", run_key="key", folder=tmp_path
        )
        assert not tracker.finish(timeout_s=5)
    assert "cannot send records to http://ada:***@127.0.0.1:1" in caplog.text
    assert "hunter2" not in caplog.text
    assert holding(tmp_path, "hunter2") == []


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.long
def test_password_of_a_local_run_signs_in_and_is_stored_nowhere(tiny_data, tmp_path, short):
    (tmp_path / "server").mkdir()
    started = Started(tmp_path / "server", "--auth")
    try:
        password = load_secrets(started.root / "auth").admin_password
        address = started.url.replace("://", f"://admin:{password}@")
        command = [sys.executable, str(ROOT / "jobs/train.py"), "upernet_vit-nano_mln_128x128_1k", "--name", "r"]
        command += ["--data", str(tiny_data), "--root", str(tmp_path / "runs"), "--steps", "2"]
        command += ["--experiment", "e", *(part for size in SIZES for part in ("--set", size))]
        named = ("RAY_", "MLFLOW_")
        settings = {name: value for name, value in os.environ.items() if not name.startswith(named)}
        settings |= {"MLFLOW_TRACKING_URI": address, "HOME": str(tmp_path / "home"), "RAY_TMPDIR": str(short)}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            client = connect(started.url)
            experiment = client.get_experiment_by_name("e")
            (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED" and "val/mIoU" in run.data.metrics
        assert run.data.tags["mlflow.user"] == "admin"
    finally:
        started.stop()
    assert password not in done.stdout + done.stderr
    assert (tmp_path / "runs" / "r" / "run.json").is_file() and list(short.rglob("gcs_server.out"))
    stored = [*holding(tmp_path, password), *holding(short, password)]
    assert stored == [str(started.root / "auth" / "secrets.json")]
