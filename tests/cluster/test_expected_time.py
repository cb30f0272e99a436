"""Hours from earlier runs and from benchmark records, by plain arithmetic."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from throughput_cards import card

from vitrail.cluster.identity import THROUGHPUT, claim_folder
from vitrail.cluster.preflight.earlier_runs import EarlierRun, earlier_runs
from vitrail.cluster.preflight.expected_time import by_earlier_run, expect
from vitrail.cluster.preflight.facts import Answer
from vitrail.cluster.sweep_plan import START_S
from vitrail.config import ComputeConfig, RunConfig
from vitrail.overrides import override
from vitrail.recipes import get_recipe

NANO = get_recipe("upernet_vit-nano_mln_128x128_1k")
DEIT = get_recipe("upernet_deit-s16_512x512_160k_ade20k")
CPU_MACHINE = Answer(cpu="AMD EPYC", cores=2, gpus=(), versions={}, cache="/c", cache_free_bytes=1)
GPU_MACHINE = CPU_MACHINE.model_copy(update={"gpus": ("NVIDIA X",) * 4})


def run_config(folder: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {"name": folder.name, "recipe": NANO, "data": "/d", "data_fingerprint": "f" * 16}
    return RunConfig(**{**values, "folder": str(folder), "workers": 2, **changes})


def test_run_takes_as_long_as_an_alike_one_took_per_image() -> None:
    earlier = EarlierRun(name="a", where="/runs", card=card().model_dump(), val_interval=250)
    found = by_earlier_run(earlier, NANO, workers=4)
    # 1000 steps of 16 at 80 images/s, and a quarter of that for validations.
    assert found.seconds == pytest.approx(START_S + 200 + 50)
    assert found.images_per_s == 80
    assert found.source == "run a on 2 x CPU (/runs), taken in proportion for 4"
    half = by_earlier_run(earlier, override(NANO, ["val_interval=500"]), workers=2, done_steps=500)
    assert half.seconds == pytest.approx(START_S + 200 + 25)


def test_earlier_runs_are_those_of_the_same_work_on_the_same_kind_of_device(tmp_path: Path) -> None:
    runs = {
        "same": (run_config(tmp_path / "same", seed=3), card()),
        "longer": (run_config(tmp_path / "longer", recipe=override(NANO, ["total_steps=9000"])), card()),
        "batch": (run_config(tmp_path / "batch", recipe=override(NANO, ["global_batch=8"])), card()),
        "model": (run_config(tmp_path / "model", recipe=NANO.with_classes(7)), card()),
        "bf16": (run_config(tmp_path / "bf16"), card(precision="bf16")),
        "gpu": (run_config(tmp_path / "gpu"), card(device="NVIDIA X")),
        "necks/trial": (run_config(tmp_path / "necks/trial"), card()),
    }
    for age, (name, (config, throughput)) in enumerate(runs.items()):
        claim_folder(config, resume=False)
        path = tmp_path / name / THROUGHPUT
        path.write_text(throughput.model_dump_json())
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / THROUGHPUT).write_text("{}")
    found = earlier_runs(tmp_path, NANO, ComputeConfig(), gpus=False)
    assert [run.name for run in found] == ["same", "longer", "trial"]
    assert [run.name for run in earlier_runs(tmp_path, NANO, ComputeConfig(), gpus=True)] == ["gpu"]
    assert earlier_runs(tmp_path / "nowhere", NANO, ComputeConfig(), gpus=True) == []


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A record of one model on a CPU, and the same figures as of a GPU, 100 times as fast."""
    figures = {
        "train_images_per_s": {"2": 0.5, "16": None},
        "predict_images_per_s": {"1": 2.0},
        "peak_memory_gib": 2.5,
        "matrix_peak_flops": 1e11,
        "nominal_utilisation": 1.0,
        "computed_utilisation": 0.9,
    }
    model = {"crop_size": 512, "nominal_flops": 1e11, "computed_flops": 1e11, "best": "fp32", "peers": {}, "ratios": {}}
    machine = {"cpu": "AMD EPYC", "cores": 2}
    header = {"benchmark": "model", "command": "uv run", "started": "2026-11-01", "versions": {}}
    for name, device, speed in (("cpu", {}, 1.0), ("gpu", {"gpu": "NVIDIA X"}, 100.0)):
        rates = {key: {n: r and r * speed for n, r in figures[key].items()} for key in list(figures)[:2]}
        ours = dict.fromkeys(("fp32", "bf16"), figures | rates)
        content = {"machine": machine | device, "results": {"architectures": {DEIT.name: model | {"ours": ours}}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(header | content))
    (tmp_path / "broken.json").write_text("{")
    return tmp_path


def expected(records: Path, run: RunConfig, *on: Answer) -> Any:
    known = {"parameters": 1, "val_images": 20, "done_steps": 0, "earlier": (), "records": records}
    return expect(run, run.recipe, **known, workers_on=on)


def test_benchmark_of_the_same_device_is_next_best(records: Path, tmp_path: Path) -> None:
    recipe = override(DEIT, ["total_steps=2000", "val_interval=1000"])
    cpus = expected(records, run_config(tmp_path / "r", recipe=recipe, cpus_per_worker=1), CPU_MACHINE)
    # Each of two workers has one of the two CPUs that were measured; validations at steps 0, 1000 and 2000.
    assert cpus.seconds == pytest.approx(START_S + (2000 * 16 / 0.25 + 60 / 1.0) / 2)
    assert cpus.source == "benchmark cpu.json on AMD EPYC, 2 cores, taken in proportion for 1 CPU"
    on_gpu = run_config(tmp_path / "r", recipe=recipe, gpus_per_worker=1, compute=ComputeConfig(precision="bf16"))
    assert expected(records, on_gpu, GPU_MACHINE).images_per_s == 100


def test_nothing_is_expected_where_nothing_is_known(records: Path, tmp_path: Path) -> None:
    run = run_config(tmp_path / "r", recipe=DEIT)
    assert expected(records, run, CPU_MACHINE.model_copy(update={"cpu": "Intel Xeon"})) is None
    assert expected(records, run) is None
    assert expected(records, run_config(tmp_path / "r"), CPU_MACHINE) is None
    other = GPU_MACHINE.model_copy(update={"gpus": ("NVIDIA Y",)})
    gpu = run_config(tmp_path / "r", recipe=DEIT, gpus_per_worker=1)
    assert expected(records, gpu, GPU_MACHINE) is not None
    assert expected(records, gpu, GPU_MACHINE, other) is None
    assert expected(records / "nowhere", run, CPU_MACHINE) is None
