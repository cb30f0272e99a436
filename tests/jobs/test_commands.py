"""Wrong commands, job by job: a message a person can act on, no traceback, and exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]
NANO = "upernet_vit-nano_128x128_1k"


def refused(run: Run, *arguments: object) -> str:
    code, output = run(*arguments)
    assert code == 2, output
    assert "Traceback" not in output
    return output


def test_unknown_recipe_is_answered_with_the_closest(run_script: Run, tmp_path: Path) -> None:
    output = refused(run_script, "jobs/train.py", "upernet_vit-nanno_128x128_1k", "--data", tmp_path)
    assert f"did you mean '{NANO}'?" in output


def test_unknown_field_is_answered_with_the_closest(run_script: Run, tmp_path: Path) -> None:
    output = refused(run_script, "jobs/train.py", NANO, "--data", tmp_path, "--set", "schedule.peak_rl=1")
    assert "did you mean 'peak_lr'?" in output


@pytest.mark.parametrize(("script", "options"), [("jobs/train.py", []), ("jobs/tune.py", ["--vary", "neck=none,mln"])])
def test_folder_that_is_no_data_set_is_refused(
    ray_session: None, run_script: Run, tmp_path: Path, script: str, options: list[str]
) -> None:
    output = refused(run_script, script, NANO, "--data", tmp_path, "--root", tmp_path / "runs", *options)
    assert "pipelines/prepare.py" in output


def test_data_set_without_training_split_is_refused(
    ray_session: None, run_script: Run, ade20k_sample: Path, tmp_path: Path
) -> None:
    code, output = run_script("pipelines/prepare.py", ade20k_sample, tmp_path / "data")
    assert code == 0, output
    output = refused(run_script, "jobs/train.py", NANO, "--data", tmp_path / "data", "--root", tmp_path / "runs")
    assert "no training split" in output


def test_manifest_of_a_newer_format_is_refused(
    ray_session: None, run_script: Run, tiny_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    values = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**values, "format_version": 99}))
    code, output = run_script("jobs/train.py", NANO, "--data", data, "--root", tmp_path / "runs")
    assert code == 1
    assert "format version 99" in output


def test_sweep_with_an_unknown_neck_is_refused(
    ray_session: None, run_script: Run, tiny_data: Path, tmp_path: Path
) -> None:
    output = refused(
        run_script, "jobs/tune.py", NANO, "--data", tiny_data, "--root", tmp_path, "--vary", "neck=mlm,none"
    )
    assert "unknown neck 'mlm'; did you mean 'mln'?" in output


def test_model_that_is_no_checkpoint_is_refused(
    ray_session: None, run_script: Run, tiny_data: Path, tmp_path: Path
) -> None:
    output = refused(run_script, "jobs/evaluate.py", tmp_path, "--data", tiny_data, "--root", tmp_path)
    assert "is not a checkpoint" in output


def test_prediction_of_a_folder_without_images_is_refused(ray_session: None, run_script: Run, tmp_path: Path) -> None:
    output = refused(run_script, "pipelines/predict.py", tmp_path, tmp_path / "images", tmp_path / "out")
    assert "is not a checkpoint" in output
