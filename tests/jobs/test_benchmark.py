"""`jobs/benchmark.py`: what it leaves behind is complete and plausible; how fast this machine is, no test can say."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str]]


def record(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    assert values["command"].startswith("uv run ") and values["versions"]["vitrail"]
    assert values["machine"]["cores"] == len(os.sched_getaffinity(0))
    results: dict[str, Any] = values["results"]
    return results


@pytest.mark.slow
def test_data_benchmark_measures_every_stage_and_both_streams(
    ray_session: None, run_script: Run, tmp_path: Path
) -> None:
    cores = os.sched_getaffinity(0)
    code, output = run_script(
        "jobs/benchmark.py", "data", "--images", 16, "--repeats", 1, "--ray-batches", 8, "--out", tmp_path / "data.json"
    )
    assert code == 0, output
    assert os.sched_getaffinity(0) == cores
    results = record(tmp_path / "data.json")
    stages = results["stages (CPU ms per image)"]
    assert all(
        stages[name] > 0 for name in ("read and check", "decode image", "decode mask", "geometry", "photometric")
    )
    assert stages["all"] == pytest.approx(sum(value for name, value in stages.items() if name != "all"))
    assert results["streams"]["in-worker reader / bare"] > 0
    assert results["Ray Data stream, one task at a time"]["images/s"] > 0
    assert "decode image" in output


@pytest.mark.slow
def test_prepare_benchmark_counts_samples_time_and_heap(ray_session: None, run_script: Run, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.csv"
    sizes.write_text("split,name,width,height\n" + "training,a,60,40\n" * 6 + "validation,b,50,70\n" * 2)
    out = tmp_path / "prepare.json"
    code, output = run_script("jobs/benchmark.py", "prepare", sizes, "--scratch", tmp_path / "scratch", "--out", out)
    assert code == 0, output
    results = record(out)
    assert results["samples"] == 8
    assert len(results["seconds of each quarter"]) == 4
    assert results["heap before (GiB)"] > 0


def test_sizes_without_their_columns_are_refused(run_script: Run, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.csv"
    sizes.write_text("split,width\n")
    code, output = run_script("jobs/benchmark.py", "prepare", sizes, "--scratch", tmp_path)
    assert code == 2
    assert "must have the columns split, height and width" in output
