"""A run that is killed in every way, and ends with the bits of one that was left alone.

worker killed -> restarted by Ray -> SIGTERM -> resumed -> everything killed -> resumed -> end
"""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from killing import kill_with_all_its_processes, start_job, step_of, wait_until, workers_of
from mlflow.tracking import MlflowClient

from vitrail.checkpoint_store import CheckpointStore, StoredCheckpoint
from vitrail.cluster.launch import plan_run
from vitrail.cluster.reconcile import reconcile
from vitrail.cluster.reporting import THROUGHPUT
from vitrail.cluster.trainer import train
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.tracking.store import default_tracking_uri
from vitrail.training.checkpoint import load_state, load_weights
from vitrail.training.continuity import Continuity

pytestmark = pytest.mark.long

RECIPE = "upernet_vit-nano_mln_128x128_1k"
TINY = (
    "val_interval=120",
    "global_batch=4",
    "schedule.warmup_steps=1",
    "transforms.scale=[256,64]",
    "transforms.crop_size=64",
    "model.backbone.img_size=64",
)
"""A nano recipe made smaller still."""
CHANGES = (*TINY, "total_steps=240")


@dataclass
class Life:
    """What was seen of the run."""

    root: Path
    folder: Path
    unbroken: Path
    """The last checkpoint of the run that was left alone."""
    output: dict[str, str] = field(default_factory=dict)
    exit_codes: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    saved_at_stop: StoredCheckpoint | None = None
    step_at_stop: int = 0

    def last(self) -> StoredCheckpoint:
        found = CheckpointStore.at(self.folder / "checkpoints").newest()
        assert found is not None
        return found

    def status(self) -> str:
        """Of the run, in MLflow."""
        client = MlflowClient(default_tracking_uri(self.root))
        experiment = client.get_experiment_by_name("vitrail")
        (run,) = client.search_runs([experiment.experiment_id])
        status: str = run.info.status
        return status


@pytest.fixture(scope="module")
def life(ray_session: None, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    root = tmp_path_factory.mktemp("life")
    recipe = override(get_recipe(RECIPE), CHANGES)
    config = plan_run(recipe, tiny_data, root=root / "unbroken", name="unbroken", workers=2)
    config = config.model_copy(update={"tracking": None, "cpus_per_worker": 1})
    unbroken = train(config, show=False).last

    life = Life(root / "runs", root / "runs" / "killed", unbroken)
    settings = [argument for change in CHANGES for argument in ("--set", change)]
    command = [RECIPE, "--data", tiny_data, "--root", life.root, "--name", "killed", "--workers", 2, *settings]
    command += ["--max-failures", 1, "--save-interval", 2]
    log = root / "log"

    job = start_job(*command, log=log)
    wait_until(lambda: step_of(life.folder) >= 20, job, log)
    workers_of(job.pid)[-1].kill()
    wait_until(lambda: Continuity.load(life.folder).restarts == 1, job, log)
    after = step_of(life.folder)
    wait_until(lambda: step_of(life.folder) > after, job, log)
    life.step_at_stop = step_of(life.folder)
    job.send_signal(signal.SIGTERM)
    life.exit_codes["stopped"] = job.wait(timeout=120)
    life.output["stopped"] = log.read_text()
    life.saved_at_stop, life.statuses["stopped"] = life.last(), life.status()

    job = start_job(*command, "--resume", log=log)
    before = step_of(life.folder)
    wait_until(lambda: step_of(life.folder) > before, job, log)
    wait_until(lambda: life.status() == "RUNNING", job, log)  # told by the outbox, at its own pace
    life.statuses["running"] = life.status()
    kill_with_all_its_processes(job)
    life.statuses["killed"] = life.status()
    reconcile(life.root)
    life.statuses["reconciled"] = life.status()

    job = start_job(*command, "--resume", log=log)
    life.exit_codes["ended"] = job.wait(timeout=300)
    life.output["ended"] = log.read_text()
    life.statuses["ended"] = life.status()
    yield life


def test_weights_and_moments_at_the_end_are_those_of_the_unbroken_run(life: Life) -> None:
    assert life.exit_codes["ended"] == 0, life.output["ended"]
    ended = life.last()
    assert ended.info.step == 240
    found, expected = load_weights(ended.fetch()), load_weights(life.unbroken)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.testing.assert_close(load_state(ended.fetch()), load_state(life.unbroken), rtol=0, atol=0)
    assert Continuity.load(life.folder).restarts == 3


def test_sigterm_saves_the_step_it_came_at_and_marks_the_run(life: Life) -> None:
    assert life.exit_codes["stopped"] == 1
    assert "was stopped after step" in life.output["stopped"] and "--resume continues it" in life.output["stopped"]
    assert "Traceback" not in life.output["stopped"]
    assert life.saved_at_stop is not None and life.saved_at_stop.info.step >= life.step_at_stop
    assert life.saved_at_stop.info.scores is None or life.saved_at_stop.info.step == 120
    assert life.statuses["stopped"] == "KILLED"


def test_run_of_a_dead_driver_is_reconciled_and_runs_again_when_resumed(life: Life) -> None:
    seen = [life.statuses[when] for when in ("running", "killed", "reconciled", "ended")]
    assert seen == ["RUNNING", "RUNNING", "KILLED", "FINISHED"]


def test_nothing_logged_is_lost_or_doubled(life: Life) -> None:
    client = MlflowClient(default_tracking_uri(life.root))
    (run,) = client.search_runs([client.get_experiment_by_name("vitrail").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(set(steps) & set(range(10, 241, 10))) == list(range(10, 241, 10))
    validated = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/mIoU")]
    assert sorted(set(validated)) == [0, 120, 240]


def test_throughput_card_tells_what_was_lost(life: Life) -> None:
    card = json.loads((life.folder / THROUGHPUT).read_text())
    assert card["restarts"] == 3
    assert 0 < card["lost_to_restarts_s"] < time.time()
    assert card["images_per_s"] > 0 and 0 <= card["data_wait_share"] <= 1
    assert card["input_headroom"] > 0.2 and card["peak_memory_gib"] > 0.1
    assert "images/s on 2 x CPU, fp32" in life.output["ended"]


def test_only_the_newest_and_the_best_checkpoints_are_kept(life: Life) -> None:
    assert len(CheckpointStore.at(life.folder / "checkpoints").checkpoints()) in (2, 3)
