"""`jobs/benchmark.py`: what it leaves behind is complete and plausible; how fast this machine is, no test can say."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.benchmark.answering_models import ModelAnswers
from vitrail.benchmark.asking import Responder
from vitrail.benchmark.end_to_end import measure_end_to_end
from vitrail.benchmark.model import FP32, PEER_FP32, ModelFigures, SideFigures, measured_as, peer_config
from vitrail.benchmark.record import BenchmarkRecord
from vitrail.errors import UsageError
from vitrail.models.flops import nominal_flops
from vitrail.overrides import override
from vitrail.recipes import RECIPES, get_recipe

NANO = "upernet_vit-nano_128x128_1k"
DEIT = "upernet_deit-s16_512x512_160k_ade20k"
PUBLISHED = [recipe for recipe in RECIPES.values() if recipe.published]

Run = Callable[..., tuple[int, str]]


def record(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    assert values["command"].startswith("uv run ") and values["versions"]["vitrail"]
    assert values["machine"]["cores"] == len(os.sched_getaffinity(0))
    results: dict[str, Any] = values["results"]
    return results


@pytest.mark.nightly
@pytest.mark.long
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


@pytest.mark.slow
def test_model_benchmark_times_all_our_settings_in_turn(run_script: Run, tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    code, output = run_script("jobs/benchmark.py", "model", NANO, "--device", "cpu", "--repeats", 1, "--out", out)
    assert code == 0, output
    results = record(out)
    assert results["rows"] == {NANO: NANO}
    figures = ModelFigures.model_validate(results["architectures"][NANO])
    assert figures.nominal_flops == nominal_flops(get_recipe(NANO).model, 128) > figures.computed_flops > 0
    assert set(figures.ours) == {FP32, "bf16"} and not figures.peers and not figures.ratios
    for side in figures.ours.values():
        assert set(side.train_images_per_s) == {2} and set(side.predict_images_per_s) == {1, 2, 4}
        assert side.best_train and side.best_predict and side.matrix_peak_flops > 1e9
        assert side.peak_memory_gib is not None and 0.1 < side.peak_memory_gib < 4
        assert side.nominal_utilisation == pytest.approx(
            3 * figures.nominal_flops * side.best_train / side.matrix_peak_flops
        )
    fastest = max(figures.ours, key=lambda name: figures.ours[name].best_train or 0)
    assert figures.best == fastest
    assert "train, batch 2" in output


def test_eleven_rows_are_seven_models() -> None:
    same = measured_as(PUBLISHED)
    assert len(same) == 11 and len(set(same.values())) == 7
    # Stochastic depth is all that tells ViT-B and DeiT-B apart.
    assert same["upernet_deit-b16_ln_mln_512x512_160k_ade20k"] == "upernet_vit-b16_ln_mln_512x512_160k_ade20k"


def test_published_rows_have_their_configs() -> None:
    assert peer_config(get_recipe(NANO)) is None
    assert sorted(filter(None, map(peer_config, PUBLISHED))) == [
        "vit_deit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_deit-b16_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_deit-b16_upernet_8xb2-80k_ade20k-512x512.py",
        "vit_deit-s16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py",
        "vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py",
        "vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py",
    ]


def test_a_python_without_mmsegmentation_is_refused() -> None:
    settings = {"config": peer_config(get_recipe(DEIT)), "side": 64, "device": "cpu", "threads": 1, "amp": False}
    with (
        Responder.start(sys.executable, "peer_model.py", [json.dumps(settings)], complaint="no mmsegmentation") as peer,
        pytest.raises(UsageError, match="no mmsegmentation"),
    ):
        peer.ask(do="describe")


def side(train: dict[int, float | None], *, memory: float) -> SideFigures:
    return SideFigures(
        train_images_per_s=train,
        predict_images_per_s={1: 10.0, 4: 20.0, 16: None},
        peak_memory_gib=memory,
        matrix_peak_flops=1e12,
        nominal_utilisation=0.5,
        computed_utilisation=0.4,
    )


def write_model_record(path: Path) -> None:
    figures = ModelFigures(
        crop_size=512,
        nominal_flops=2e9,
        computed_flops=1e9,
        best="bf16",
        ours={FP32: side({2: 5.0, 16: None}, memory=3.5), "bf16": side({2: 8.0, 16: 9.0}, memory=2.25)},
        peers={PEER_FP32: side({2: 2.0, 16: 2.5}, memory=4.5), "AMP": side({2: 2.0, 16: 3.0}, memory=4.0)},
        ratios={
            f"{FP32} / {PEER_FP32}": {"train, batch 2": 2.5, "predict, batch 1": 1.25},
            f"bf16 / {PEER_FP32}": {"train, batch 16": 3.6, "predict, batch 1": 1.5},
            "bf16 / AMP": {"train, batch 16": 3.0, "predict, batch 1": 1.75},
        },
    )
    results = {"device": "cuda", "architectures": {DEIT: figures.model_dump(mode="json")}, "rows": {DEIT: DEIT}}
    made = BenchmarkRecord.of("model", results)
    made.model_copy(update={"machine": {**made.machine, "gpu": "GPU X"}}).write(path)


def test_report_puts_figures_beside_the_published_ones(run_script: Run, tmp_path: Path) -> None:
    write_model_record(tmp_path / "results" / "gpu.json")
    page = tmp_path / "page.md"
    code, output = run_script("jobs/benchmark.py", "report", "--results", tmp_path / "results", "--markdown", page)
    assert code == 0, output
    assert "GPU X" in output and "2.50 / 3.00" in output
    lines = [line for line in page.read_text().splitlines() if line.startswith("| upernet_")]
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines}
    assert set(cells) == {recipe.name for recipe in PUBLISHED}
    assert cells[DEIT] == [
        *("42.87", "4.68", "3.50 / 2.25", "29.19", "10.00 / 10.00", "20.00 / 20.00", "5.00 / 9.00"),
        *("bf16, 16", "2.50 / 3.00", "1.25 / 1.50 |"),
    ]


def test_report_without_records_says_how_to_make_one(run_script: Run, tmp_path: Path) -> None:
    code, output = run_script("jobs/benchmark.py", "report", "--results", tmp_path)
    assert code == 2
    assert "jobs/benchmark.py model --all" in output


def test_recorded_results_can_be_read() -> None:
    results = Path(__file__).parents[2] / "jobs" / "results"
    for path in results.glob("*.json"):
        assert BenchmarkRecord.model_validate_json(path.read_text()).results


def test_validation_benchmark_scores_the_split(run_script: Run, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "validation.json"
    code, output = run_script(
        *("jobs/benchmark.py", "validation", NANO, "--data", tiny_data, "--device", "cpu", "--repeats", 1, "--out", out)
    )
    assert code == 0, output
    assert record(out)["images"] == 5


@pytest.mark.nightly
@pytest.mark.long
def test_end_to_end_benchmark_compares_runs_with_the_bare_loop(
    ray_session: None, tiny_data: Path, tmp_path: Path
) -> None:
    small = ["transforms.crop_size=64", "transforms.scale=[256,64]", "model.backbone.img_size=64", "global_batch=4"]
    recipe = override(get_recipe(NANO), small)
    results = measure_end_to_end(recipe, str(tiny_data), tmp_path, workers=1, steps=20, repeats=1, ingests=["worker"])
    found = results["Ray Train, in-worker reader"]
    for beside in ("cached batches", "a reader"):
        rate = found[f"bare loop on {beside} (images/s)"]
        assert found[f"run / bare loop on {beside}"] == pytest.approx(found["images/s"] / rate)
    assert 0 <= found["data wait share"] <= 1


def test_running_out_of_memory_is_an_answer_and_what_fits_goes_on() -> None:
    def build(work: str, batch: int) -> Callable[[], object]:
        return lambda: torch.empty(batch, dtype=torch.uint8)

    ask = ModelAnswers(build, "cpu", torch.float32, versions={})
    for batch, fits in ((2**60, False), (2, True)):
        assert ask({"do": "load", "work": "predict", "batch": batch}) == {}
        answer = ask({"do": "run", "times": 3, "warm": 1})
        assert ("peak_bytes" in answer, "failed" in answer) == (fits, not fits)
