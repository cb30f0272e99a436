import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.errors import UsageError
from vitrail.tracking.delivery import Delivery
from vitrail.tracking.environment import connect
from vitrail.tracking.tracker import MlflowTracker, NullTracker, start_run


def begin(store: str, folder, run_key: str = "key", **options) -> MlflowTracker:
    return start_run(
        tracking_uri=store, experiment="streets", run_name="nano", run_key=run_key, folder=folder, **options
    )


def test_all_that_is_logged_is_in_mlflow(store, tmp_path):
    tracker = begin(store, tmp_path / "run", params={"lr": 1e-3}, tags={"vitrail.recipe": "nano"})
    for step in range(3):
        tracker.log_metrics({"train/loss": 1 / (step + 1), "val/IoU/building;edifice": math.nan}, step=step)
    tracker.log_table({"class": ["sky", "car"], "IoU": [np.float32(0.5), math.nan]}, "tables/per_class.json")
    tracker.log_dict({"a": [1]}, "config.json")
    tracker.log_dataset("streets-train", digest="f" * 40, context="train", source="shards")
    assert tracker.finish("FINISHED")

    client = connect(store)
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "nano", {"lr": "0.001"})
    assert run.data.tags["vitrail.recipe"] == "nano"
    assert [m.value for m in client.get_metric_history(tracker.run_id, "train/loss")] == [
        1.0,
        0.5,
        pytest.approx(1 / 3),
    ]
    assert math.isnan(run.data.metrics["val/IoU/building_edifice"])
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("streets-train", "f" * 36, "train")
    table = json.loads(Path(client.download_artifacts(tracker.run_id, "tables/per_class.json")).read_text())
    assert table == {"columns": ["class", "IoU"], "data": [["sky", 0.5], ["car", None]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/per_class.json", "type": "table"}]
    assert list((tmp_path / "run" / "outbox" / "files").iterdir()) == []


def test_picture_has_its_pixels_and_a_thumbnail(store, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (400, 640, 3), dtype=np.uint8)
    tracker = begin(store, tmp_path / "run")
    tracker.log_image("val/a picture", picture, step=7)
    assert tracker.finish()

    client = connect(store)
    files = sorted(entry.path for entry in client.list_artifacts(tracker.run_id, "images"))
    assert [name.split("+timestamp")[0] for name in files] == ["images/val~a picture+step+7"] * 2
    thumbnail, full = (Image.open(client.download_artifacts(tracker.run_id, name)) for name in files)
    assert (np.asarray(full) == picture).all()
    assert thumbnail.format == "WEBP" and thumbnail.size == (256, 160)


def test_a_key_names_one_run_that_restarts_continue(store, tmp_path):
    first = begin(store, tmp_path / "a")
    first.log_metrics({"loss": 1.0}, step=1)
    assert first.finish("FAILED")
    elsewhere = begin(store, tmp_path / "b")  # another machine: nothing of the first outbox is there
    elsewhere.log_metrics({"loss": 0.5}, step=2)
    assert elsewhere.flush()
    assert connect(store).get_run(elsewhere.run_id).info.status == "RUNNING"
    assert elsewhere.finish()

    assert first.run_id == elsewhere.run_id
    assert [m.step for m in connect(store).get_metric_history(first.run_id, "loss")] == [1, 2]


def test_child_is_linked_to_a_parent_that_comes_later(store, tmp_path):
    child = begin(store, tmp_path / "child", "trial-1", parent_run_key="sweep")
    parent = begin(store, tmp_path / "parent", "sweep")
    assert parent.finish()
    assert child.finish()
    assert connect(store).get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_refused_values_are_put_aside_and_the_rest_arrives(store, tmp_path):
    tracker = begin(store, tmp_path / "run", params={"workers": 1})
    tracker.log_params({"workers": 2, "seed": 0})
    tracker.log_params({"k" * 300: "too long a name"})
    tracker.log_metrics({"loss": 1.0}, step=0)
    assert tracker.finish()

    run = connect(store).get_run(tracker.run_id)
    assert run.data.params == {"workers": "1", "seed": "0"}
    assert run.data.metrics == {"loss": 1.0}
    lines = (tmp_path / "run" / "outbox" / "quarantine.jsonl").read_text().splitlines()
    assert [list(json.loads(line)["record"]["values"]) for line in lines] == [["workers"], ["k" * 300]]


def test_sending_everything_twice_changes_nothing(store, tmp_path):
    tracker = begin(store, tmp_path / "run", params={"lr": 1})
    for step in range(50):
        tracker.log_metrics({"loss": float(step), "acc": 0.5}, step=step)
    tracker.log_dataset("streets", digest="d", context="val", source="shards")
    assert tracker.finish()

    journal = tracker._outbox.journal
    again = Delivery(store, journal.files)
    refused = []
    for entry in journal.entries(0):
        again.send([entry.record], refuse=lambda record, reason: refused.append(reason))
    client = connect(store)
    assert refused == []
    assert again.run_id == tracker.run_id
    assert len(client.search_runs([tracker._outbox.experiment_id])) == 1
    assert len(client.get_metric_history(tracker.run_id, "loss")) == 50
    assert len(client.get_run(tracker.run_id).inputs.dataset_inputs) == 1


def test_records_that_cannot_be_read_are_put_aside(store, tmp_path):
    tracker = begin(store, tmp_path / "run")
    assert tracker.flush()
    with (tmp_path / "run" / "outbox" / "records.jsonl").open("a") as file:
        file.write("not json\n")
    tracker.log_metrics({"loss": 2.0}, step=0)
    assert tracker.finish()
    assert connect(store).get_run(tracker.run_id).data.metrics == {"loss": 2.0}
    assert "not json" in (tmp_path / "run" / "outbox" / "quarantine.jsonl").read_text()


def test_full_disk_costs_records_but_raises_nothing(store, tmp_path, caplog):
    tracker = begin(store, tmp_path / "run")
    assert tracker.flush()
    records = tmp_path / "run" / "outbox" / "records.jsonl"
    records.unlink()
    records.mkdir()  # stands for any error of the file system: root may write to read-only files
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert [record.message for record in caplog.records if "is lost" in record.message] != []
    records.rmdir()


def test_url_opens_the_pages_for_machine_learning(store, tmp_path):
    tracker = begin("http://127.0.0.1:9", tmp_path / "run")
    assert tracker.url is None
    tracker._outbox._delivery.run_id, tracker._outbox._delivery.experiment_id = "r", "3"
    assert tracker.url == "http://127.0.0.1:9/#/experiments/3/runs/r?workflowType=machine_learning"
    assert not tracker._outbox.close(0.1)


def test_key_that_cannot_be_searched_for_is_refused(store, tmp_path):
    with pytest.raises(UsageError, match="run_key"):
        begin(store, tmp_path / "run", "it's")


def test_null_tracker_has_every_method_of_the_real_one():
    public = {name for name in vars(MlflowTracker) if not name.startswith("_")}
    assert public == {name for name in vars(NullTracker) if not name.startswith("_")}
    assert NullTracker().finish() is True
