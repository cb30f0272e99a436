"""Runs that lose machines, gain machines, are warned of a loss, and that cannot start."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray.train
from killing import ROOT, start_job

pytestmark = pytest.mark.long


def play(scenario: str, data: Path, folder: Path) -> dict[str, Any]:
    """What a scenario of `node_loss.py` has seen; with a Ray of its own, and none of this process's settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_worker_niceness": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(ROOT / "tests/cluster/node_loss.py"), scenario, str(data), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(scenario, seen)
    return seen


@pytest.mark.nightly
def test_run_grows_onto_a_new_machine_and_survives_a_silent_loss(tiny_data: Path, tmp_path: Path) -> None:
    seen = play("gain_and_lose", tiny_data, tmp_path)
    assert seen["step"] == seen["total_steps"]
    assert (seen["restarts"], seen["workers"]) == (2, 1)
    # 18 s until Ray misses the machine, and a start of workers.
    assert seen["recovery_s"] < 120  # a hang, or a start on the lost machine; usually half a minute


@pytest.mark.nightly
def test_notice_of_preemption_leads_to_a_checkpoint_in_time(tiny_data: Path, tmp_path: Path) -> None:
    seen = play("preempt", tiny_data, tmp_path)
    assert seen["saved_s"] < seen["deadline_s"]
    assert 0 < seen["saved_step"] < seen["total_steps"]
    assert seen["step"] == seen["total_steps"]


@pytest.mark.nightly
def test_ranks_that_report_unequally_are_ended_in_time(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train.torch import TorchTrainer

    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "3")

    def report_on_rank_zero() -> None:
        if ray.train.get_context().get_world_rank() == 0:
            ray.train.report({})
        else:
            time.sleep(60)

    trainer = TorchTrainer(
        report_on_rank_zero,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="unequal", storage_path=str(tmp_path)),
    )
    with pytest.raises(ray.train.WorkerGroupError, match=r"have not joined the collective operation: \[1\]"):
        trainer.fit()


@pytest.mark.nightly
def test_workers_that_cannot_reach_each_other_are_explained(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
    log = tmp_path / "log"
    job = start_job("upernet_vit-nano_mln_128x128_1k", "--data", tiny_data, "--root", tmp_path, "--workers", 2, log=log)
    assert job.wait(timeout=120) == 1, log.read_text()
    said = log.read_text()
    assert "Unable to find address for: nowhere" in said
    assert "set GLOO_SOCKET_IFNAME" in said
    assert "Traceback" not in said
