"""Which workers show gauges at all; what they show is tried in test_watching.py."""

import pytest
import ray

from vitrail.cluster.watching import run_metrics as metrics
from vitrail.cluster.watching.run_metrics import SWITCH, NullRunMetrics, RunMetrics

READINGS = {"images_per_s": 30.0, "data_wait_share": 0.1, "loss": 1.0, "decode.acc_seg": 40.0, "grad_norm": 2.0}


def test_workers_of_a_ray_that_was_started_here_set_nothing(ray_session: None) -> None:
    @ray.remote(num_cpus=0)
    def opened() -> str:
        return type(RunMetrics.open("run", rank=0)).__name__

    assert ray.get(opened.remote()) == NullRunMetrics.__name__


def test_workers_of_a_cluster_set_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert type(RunMetrics.open("run", rank=0)) is RunMetrics


def test_null_metrics_take_all_that_others_take() -> None:
    nothing = NullRunMetrics("run", rank=0)
    nothing.set_steps(READINGS)
    nothing.set_worker(READINGS, share=0.5)
    nothing.set({metrics.STEP: 3})
    assert not nothing._gauges
