"""The whole life of a model as jobs on a cluster of several machines, and the loss of one of them."""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from head import alive_machines, start_head, start_machine, switch_off
from job_cluster import TINY, Cluster, make_checkout
from queue_waiting import status, until

from vitrail.data.scenes import draw_scenes
from vitrail.tracking.registry import get_model
from vitrail.tracking.store import default_tracking_uri

RECIPE = "upernet_vit-nano_mln_128x128_1k"
MODEL = "streets"


@dataclass(frozen=True)
class Machines:
    """A head that trains nothing, and machines that do."""

    cluster: Cluster
    logs: Path

    def run(self, script: str, *arguments: object, name: str) -> str:
        """Send a script, wait for its end, which must be a success, and return what it printed."""
        checkout = self.cluster.checkout
        code, output = self.cluster.run("submit", "--follow", "--name", name, checkout / script, *arguments)
        assert code == 0, output
        return output


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A head, and no machine yet."""
    folder = tmp_path_factory.mktemp("machines")
    checkout = make_checkout(folder / "checkout", {})
    with start_head(folder, num_cpus=0, environment={"RAY_health_check_period_ms": "2000"}) as head:
        yield Machines(Cluster(head, checkout), folder)


@pytest.mark.long
def test_whole_life_of_a_model_as_jobs_on_two_machines(machines: Machines, tmp_path: Path, ray_session: None) -> None:
    cluster, runs = machines.cluster, machines.cluster.head.runs
    uri = default_tracking_uri(runs)
    scenes, data = tmp_path / "scenes", tmp_path / "data"
    draw_scenes(scenes, train=16, val=8, size=64, seed=0)
    tiny = [part for change in [*TINY, "val_interval=6", "total_steps=6"] for part in ("--set", change)]
    with (
        start_machine(cluster.head, machines.logs / "a.log", num_cpus=1),
        start_machine(cluster.head, machines.logs / "b.log", num_cpus=1),
    ):
        assert "training   │     16" in machines.run("pipelines/prepare.py", scenes, data, name="prepare")
        machines.run(
            "jobs/tune.py", RECIPE, "--data", data, "--vary", "neck=none,mln", *tiny, "--register", MODEL, name="sweep"
        )
        trained = machines.run(
            "jobs/train.py",
            RECIPE,
            "--data",
            data,
            "--name",
            "train",
            "--workers",
            2,
            *tiny,
            "--register",
            MODEL,
            name="train",
        )
        assert "registered as streets version 2" in trained
        code, output = cluster.run("models", "promote", MODEL, 2, "--tracking-uri", uri, "--data", data, "--root", runs)
        assert code == 0, output
        scores = tmp_path / "scores.json"
        machines.run("jobs/evaluate.py", f"models:/{MODEL}@champion", "--data", data, "--out", scores, name="evaluate")
        assert 0 <= json.loads(scores.read_text())["mIoU"] <= 1
        images, out = scenes / "images" / "validation", tmp_path / "out"
        machines.run("pipelines/predict.py", f"models:/{MODEL}@champion", images, out, name="predict")
        assert len(list(out.rglob("*.png"))) >= 8
    listed = cluster.run("list")[1]
    assert [name for name in ("predict", "evaluate", "train", "sweep", "prepare") if f"{name} " in listed]
    assert listed.count("SUCCEEDED") == 5
    assert get_model(MODEL, tracking_uri=uri).aliases == {"champion": 2}
    card = json.loads((runs / "train" / "throughput.json").read_text())
    assert (card["workers"], card["restarts"]) == (2, 0)


@pytest.mark.long
def test_loss_of_a_machine_under_three_jobs_ends_all_three_right(machines: Machines, tiny_data: Path) -> None:
    """One machine of three goes; the job that it held goes on where one of the others has ended."""
    cluster, names = machines.cluster, ("one", "two", "three")
    with ExitStack() as stack:
        joined = [
            stack.enter_context(start_machine(cluster.head, machines.logs / f"{name}.log", num_cpus=1))
            for name in names
        ]
        for name in names:
            options = ("--max-failures", "1", "--save-interval", "2")
            assert cluster.train(tiny_data, name=name, steps=400, workers=1, script_options=options)[0] == 0
        for name in names:
            cluster.wait_until(name, lambda log: "/400  training  loss" in log)
        switch_off(joined[1])
        until(lambda: len(alive_machines(cluster.head)) == 3)
        for name in names:
            code, output = cluster.run("logs", "--follow", name)
            assert code == 0, output
            assert f"{name}: SUCCEEDED" in status(cluster, name)
    cards = [json.loads((cluster.head.runs / name / "throughput.json").read_text()) for name in names]
    assert sorted(card["restarts"] for card in cards) == [0, 0, 1]
    scores = [json.loads(path.read_text()) for name in names for path in checkpoints(cluster.head.runs / name)]
    assert [found["step"] for found in scores] == [400, 400, 400]
    # One recipe, data set and seed: whoever lost its machine has come to what the others have.
    assert len({found["scores"]["mIoU"] for found in scores}) == 1
    assert not any(math.isnan(found["scores"]["mIoU"]) for found in scores)


def checkpoints(run: Path) -> list[Path]:
    """The record of the checkpoint of the last step."""
    return sorted((run / "checkpoints").glob("step_*400*/checkpoint.json"))[-1:]
