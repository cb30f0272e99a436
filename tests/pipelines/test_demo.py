"""The whole life of a model in small: every stage of the demo, and what it leaves in MLflow and on disk."""

import base64
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vitrail.checkpoint import CHECKPOINTS, read_info
from vitrail.data.codec import decode_raw_label
from vitrail.revision import code_revision
from vitrail.tracking.environment import connect
from vitrail.tracking.promotion import history
from vitrail.tracking.registry import download, resolve
from vitrail.tracking.store import default_tracking_uri

Run = Callable[..., tuple[int, str]]
SMALL = ("--images", 16, "--trial-steps", 2, "--steps", 4)


@pytest.fixture(scope="module")
def demo(ray_session: None, run_script: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("demo") / "demo"
    code, output = run_script("pipelines/demo.py", "--root", root, *SMALL)
    assert code == 0, output
    return root, output


@pytest.mark.slow
def test_demo_tells_what_came_out(demo: tuple[Path, str]) -> None:
    root, output = demo
    stages = ["Draw", "Prepare", "Sweep", "Train", "Register", "Evaluate", "Predict"]
    assert [line.split(":")[0] for line in output.splitlines() if line.split(":")[0] in stages] == stages
    for text in ("mIoU before training", "demo-scenes version 1", "cosine", f"vitrail ui --root {root}"):
        assert text in output


@pytest.mark.slow
def test_sweep_is_one_parent_with_a_finished_child_per_trial(demo: tuple[Path, str]) -> None:
    client = connect(default_tracking_uri(demo[0]))
    experiment = client.get_experiment_by_name("demo").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"sweep", "train", "none-cosine-seed0", "mln-cosine-seed0"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{runs['sweep'].info.run_id}'")
    assert len(children) == 2
    best = max(run.data.metrics["best/val_mIoU"] for run in children)
    assert runs["sweep"].data.metrics["best/val_mIoU"] == pytest.approx(best)


@pytest.mark.slow
def test_training_run_carries_metrics_pictures_table_and_data(demo: tuple[Path, str]) -> None:
    client = connect(default_tracking_uri(demo[0]))
    experiment = client.get_experiment_by_name("demo").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'train'")
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/mIoU")]
    assert steps == [0, 2, 4]
    assert {"train/loss", "train/lr", "train/images_per_s", "train/data_wait_share"} <= set(run.data.metrics)
    assert run.data.params["workers"] == "2"
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"scenes-training", "scenes-validation"}
    pictures = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    assert any("+step+0+" in path.replace("%", "+") for path in pictures), pictures
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, "tables")] == ["tables/per_class.json"]


@pytest.mark.slow
def test_champion_is_the_best_checkpoint_of_the_run(demo: tuple[Path, str]) -> None:
    root, uri = demo[0], default_tracking_uri(demo[0])
    champion = resolve("models:/demo-scenes@champion", tracking_uri=uri)
    checkpoints = [read_info(folder) for folder in (root / "train" / CHECKPOINTS).glob("step_*")]
    best = max(info.scores.mIoU for info in checkpoints if info.scores)
    assert float(champion.tags["vitrail.mIoU"]) == pytest.approx(best)
    assert [move.to_version for move in history("demo-scenes", tracking_uri=uri)] == [1]
    assert champion.tags["vitrail.code"] == code_revision()
    assert champion.tags["vitrail.data_uri"] == str(root / "data")


@pytest.mark.slow
def test_champion_comes_with_pictures_and_predicts_in_mlflow_as_the_pipeline_does(demo: tuple[Path, str]) -> None:
    root, uri = demo[0], default_tracking_uri(demo[0])
    champion = resolve("models:/demo-scenes@champion", tracking_uri=uri)
    folder = download(champion.uri, root / "models" / "demo-scenes-v1", tracking_uri=uri)
    assert len(list((folder / "pictures").glob("*.jpg"))) == champion.description.count("![") == 4

    from mlflow.pyfunc import load_model

    image = min((root / "scenes" / "images" / "validation").iterdir())
    answer = load_model(str(folder)).predict({"image": [image.read_bytes()]})
    written = (root / "predictions" / "labels" / f"{image.stem}.png").read_bytes()
    predicted = base64.b64decode(answer["label_map_png"][0])
    np.testing.assert_array_equal(decode_raw_label(predicted), decode_raw_label(written))


@pytest.mark.slow
def test_predictions_are_label_maps_of_raw_ids_and_overlays(demo: tuple[Path, str]) -> None:
    root = demo[0]
    images = sorted(path.stem for path in (root / "scenes" / "images" / "validation").iterdir())
    assert sorted(path.stem for path in (root / "predictions" / "labels").iterdir()) == images
    assert sorted(path.stem for path in (root / "predictions" / "overlays").iterdir()) == images
    label = cv2.imread(str(root / "predictions" / "labels" / f"{images[0]}.png"), cv2.IMREAD_UNCHANGED)
    assert label.shape == (128, 128)
    assert label.dtype == np.uint8
    assert label.min() >= 1  # 0 is "unlabelled", which a model never answers
    assert label.max() <= 8


@pytest.mark.slow
def test_evaluation_of_the_checkpoint_repeats_the_score_of_its_training(
    demo: tuple[Path, str], run_script: Run, tmp_path: Path
) -> None:
    checkpoint = next((demo[0] / "train" / CHECKPOINTS).glob("step_*4"))
    code, output = run_script(
        "jobs/evaluate.py", checkpoint, "--data", demo[0] / "data", "--workers", 2, "--out", tmp_path / "scores.json"
    )
    assert code == 0, output
    scores = read_info(checkpoint).scores
    assert scores is not None
    assert scores == type(scores).model_validate_json((tmp_path / "scores.json").read_text())
    assert f"mIoU {scores.mIoU:.2%}" in output


@pytest.mark.slow
def test_resumed_demo_keeps_what_is_finished(demo: tuple[Path, str], run_script: Run) -> None:
    root, uri = demo[0], default_tracking_uri(demo[0])
    before = {path: path.stat().st_mtime_ns for path in root.glob("**/step_*/model.safetensors")}
    code, output = run_script("pipelines/demo.py", "--root", root, "--resume", *SMALL)
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in root.glob("**/step_*/model.safetensors")} == before
    assert [move.to_version for move in history("demo-scenes", tracking_uri=uri)] == [1]


def test_folder_of_an_earlier_demo_is_touched_only_as_asked(run_script: Run, tmp_path: Path) -> None:
    (tmp_path / "demo.txt").write_text("an earlier demo")
    code, output = run_script("pipelines/demo.py", "--root", tmp_path)
    assert code == 2
    assert "--resume" in output
    assert "--replace" in output


def test_folder_of_something_else_is_never_touched(run_script: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    code, output = run_script("pipelines/demo.py", "--root", tmp_path, "--replace")
    assert code == 2
    assert "something other than a demo" in output
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"
