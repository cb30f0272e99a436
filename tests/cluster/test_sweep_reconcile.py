"""A sweep whose driver is dead, without anything having been trained."""

import multiprocessing
import os
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from test_sweep_plan import config

from vitrail.cluster.driver import hold_run
from vitrail.cluster.reconcile import reconcile
from vitrail.cluster.sweep_plan import SweepConfig
from vitrail.cluster.sweep_recorder import Recorder
from vitrail.cluster.tuner import open_parent
from vitrail.config import TrackingConfig
from vitrail.tracking.store import default_tracking_uri


def drive(plan: SweepConfig) -> None:
    """What a driver does before its first trial, in a process that then dies."""
    with hold_run(plan.folder):
        recorder = Recorder(plan)
        recorder.begin({})
        recorder.expect([(chosen, 0) for chosen in plan.space.configurations()], retry_failed=False)
        assert open_parent(plan).flush()
        os._exit(3)


@pytest.mark.long
def test_sweep_of_a_dead_driver_is_marked_once(tmp_path: Path, tiny_data: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    plan = config(tmp_path, tiny_data)
    tracking = TrackingConfig(uri=uri, parent_run_key="sweep-of-the-test")
    plan = plan.model_copy(update={"template": plan.template.model_copy(update={"tracking": tracking})})
    plan.save()
    driver = multiprocessing.get_context("spawn").Process(target=drive, args=(plan,))
    driver.start()
    driver.join(timeout=60)
    assert driver.exitcode == 3
    (found,) = reconcile(tmp_path)
    assert (found.name, found.status, found.delivered) == ("sweep", "KILLED", True)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("vitrail").experiment_id])
    assert run.info.status == "KILLED"
    assert reconcile(tmp_path) == []
