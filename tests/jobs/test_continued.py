"""The scripts of a job that begins once more, which are sent the command that they began with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrail.options import CONTINUE_VARIABLE

Run = Callable[..., tuple[int, str]]
TINY = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256, 64]", "transforms.crop_size=64"]
TINY += ["model.backbone.img_size=64", "total_steps=2", "val_interval=2"]
SETS = [part for change in TINY for part in ("--set", change)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "options", "record"),
    [
        ("jobs/train.py", ["--name", "run"], "run/run.json"),
        ("jobs/tune.py", ["--name", "run", "--vary", "neck=none"], "run/sweep.json"),
    ],
)
def test_what_has_begun_goes_on_by_the_same_command(
    ray_session: None,
    run_script: Run,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    options: list[str],
    record: str,
) -> None:
    command = [script, "upernet_vit-nano_mln_128x128_1k", "--data", tiny_data, "--root", tmp_path, *options, *SETS]
    monkeypatch.setenv(CONTINUE_VARIABLE, "1")  # also where its first start came to nothing
    code, output = run_script(*command)
    assert code == 0, output
    begun = json.loads((tmp_path / record).read_text())
    checkpoints = sorted(tmp_path.rglob("step_*/checkpoint.json"))
    written = [path.stat().st_mtime_ns for path in checkpoints]

    code, output = run_script(*command)
    assert code == 0, output
    assert json.loads((tmp_path / record).read_text()) == begun
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("step_*/checkpoint.json"))] == written

    monkeypatch.delenv(CONTINUE_VARIABLE)
    code, output = run_script(*command)
    assert code == 2, output
