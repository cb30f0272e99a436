"""A sweep in which trials are ended early, fail, and are cut off with the whole machine; and what it leaves."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from killing import kill_with_all_its_processes, start_job, step_of, wait_until
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from test_survival import TINY

from vitrail.cluster.reconcile import reconcile
from vitrail.cluster.sweep_plan import RECORD_FILE
from vitrail.cluster.tuner import REPORT_FILE
from vitrail.sweep.record import SweepRecord, Trial
from vitrail.tracking.registry import get_model
from vitrail.tracking.store import default_tracking_uri
from vitrail.training.continuity import Continuity

pytestmark = [pytest.mark.long, pytest.mark.nightly]

NANO = "upernet_vit-nano_128x128_1k"
CHANGES = (*TINY, "total_steps=90", "val_interval=30")
GOOD, POOR, BURSTING, CUT_OFF = "lr0.002-seed0", "lr1e-12-seed0", "lr1e+30-seed0".replace("+", ""), "lr0.001-seed0"


@dataclass
class Life:
    """What was seen of the sweep."""

    root: Path
    record: SweepRecord
    at_kill: SweepRecord
    step_at_kill: int
    steps_of_good: dict[str, int]
    """Times at which the first trial's checkpoints were written, before the kill."""
    output: str
    reconciled: dict[str, str]
    """What was marked as over after the kill."""
    exit_codes: dict[str, int] = field(default_factory=dict)

    def trial(self, name: str) -> Trial:
        found = self.record.trial(name)
        assert found is not None
        return found


def written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("checkpoints/step_*/model.safetensors")}


@pytest.fixture(scope="module")
def life(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    root = tmp_path_factory.mktemp("sweep")
    log, folder = root / "log", root / "sweep"
    command = [NANO, "--data", tiny_data, "--root", root, "--vary", "lr=0.002,1e-12,0.001,1e30"]
    command += ["--scheduler", "asha", "--concurrent", 1]
    command += [argument for change in CHANGES for argument in ("--set", change)]

    def known(name: str) -> Trial | None:
        return SweepRecord.load(folder / RECORD_FILE).trial(name) if (folder / RECORD_FILE).is_file() else None

    def cut_off_is_under_way() -> bool:
        trial = known(CUT_OFF)
        return trial is not None and trial.step >= 30 and step_of(folder / CUT_OFF) > 30

    job = start_job(*command, log=log, script="tune.py")
    wait_until(cut_off_is_under_way, job, log, timeout_s=500)
    kill_with_all_its_processes(job)
    at_kill, good, step = SweepRecord.load(folder / RECORD_FILE), written(folder / GOOD), step_of(folder / CUT_OFF)

    reconciled = {found.name: found.status for found in reconcile(root)}
    codes = {"again": start_job(*command, log=root / "again", script="tune.py").wait(timeout=120)}
    job = start_job("--resume", "sweep", "--root", root, log=log, script="tune.py")
    codes["resumed"] = job.wait(timeout=400)
    return Life(
        root=root,
        record=SweepRecord.load(folder / RECORD_FILE),
        at_kill=at_kill,
        step_at_kill=step,
        steps_of_good=good,
        output=log.read_text(),
        reconciled=reconciled,
        exit_codes={**codes, "again said": int("--resume sweep" in (root / "again").read_text())},
    )


def children(life: Life) -> tuple[Run, dict[str, Run]]:
    client = MlflowClient(default_tracking_uri(life.root))
    experiment = client.get_experiment_by_name("vitrail").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = (run for run in runs if run.data.tags.get("vitrail.kind") == "sweep")
    found = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(found)
    assert len({run.info.run_name for run in found}) == len(found)
    return parent, {run.info.run_name: run for run in found}


def test_sweep_that_is_there_is_gone_on_with_only_as_asked(life: Life) -> None:
    assert life.exit_codes["again"] == 2
    assert life.exit_codes["again said"]
    assert life.exit_codes["resumed"] == 0, life.output


def test_killed_sweep_is_reconciled_with_the_trial_that_it_was_at(life: Life) -> None:
    assert {name: status for name, status in life.reconciled.items() if name != POOR} == {
        "sweep": "KILLED",
        CUT_OFF: "KILLED",
    }


def test_poor_trial_is_ended_early(life: Life) -> None:
    assert life.trial(POOR).status == "stopped"
    assert life.trial(POOR).step == 30 < life.trial(GOOD).step == 90


def test_failed_trial_says_why_and_does_not_end_the_sweep(life: Life) -> None:
    trial = life.trial(BURSTING)
    assert trial.status == "failed"
    assert trial.error is not None
    assert "NaN or infinite" in trial.error


def test_finished_trial_stays_finished(life: Life) -> None:
    known = life.at_kill.trial(GOOD)
    assert known is not None
    assert known.status == "finished"
    assert life.trial(GOOD) == known
    assert written(life.root / "sweep" / GOOD) == life.steps_of_good


def test_trial_that_was_cut_off_goes_on_from_its_checkpoint(life: Life) -> None:
    continuity = Continuity.load(life.root / "sweep" / CUT_OFF)
    assert continuity.restarts == 1
    assert continuity.step > life.step_at_kill
    steps = [score.step for score in life.trial(CUT_OFF).scores]
    assert steps == sorted(set(steps))
    assert steps == [30, 60, 90]
    assert life.trial(CUT_OFF).status == "finished"


def test_mlflow_has_one_parent_with_one_child_per_trial(life: Life) -> None:
    parent, runs = children(life)
    assert set(runs) == {GOOD, POOR, BURSTING, CUT_OFF}
    assert parent.info.status == "FINISHED"
    statuses = {name: run.info.status for name, run in runs.items()}
    assert (statuses[GOOD], statuses[POOR], statuses[BURSTING]) == ("FINISHED", "KILLED", "FAILED")
    assert "asha" in runs[POOR].data.tags["vitrail.stopped"]
    client = MlflowClient(default_tracking_uri(life.root))
    files = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {REPORT_FILE, "pictures", "tables"} <= files
    best = [trial.best.miou for trial in life.record.trials if trial.status == "finished" and trial.best]
    assert parent.data.metrics["best/val_mIoU"] == pytest.approx(max(best))


def test_best_trial_is_registered(life: Life) -> None:
    _, runs = children(life)
    (version,) = get_model("scenes", tracking_uri=default_tracking_uri(life.root)).versions
    assert version.run_id in {runs[GOOD].info.run_id, runs[CUT_OFF].info.run_id}
    assert "Noise is unknown" in life.output
    page = (life.root / "sweep" / REPORT_FILE).read_text()
    assert all(name in page for name in (GOOD, POOR, BURSTING, CUT_OFF))
