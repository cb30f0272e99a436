import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.tracking.environment import connect
from vitrail.tracking.store import artifact_location, default_tracking_uri, ensure_store, is_http


def test_address_is_absolute_so_that_every_process_means_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert not is_http(default_tracking_uri(Path("runs")))


def test_files_of_an_experiment_lie_beside_the_database():
    assert (
        artifact_location("sqlite:////data/runs/mlflow.db", "my streets/2")
        == "file:///data/runs/artifacts/my-streets-2"
    )
    assert artifact_location("http://mlflow:5000", "streets") is None


def test_asking_for_a_server_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ensure_store("http://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_that_come_at_once_make_one_store(tmp_path):
    uri = default_tracking_uri(tmp_path / "runs")
    code = f"from vitrail.tracking.store import ensure_store; ensure_store({uri!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()

    assert connect(uri).search_experiments()[0].name == "Default"
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
