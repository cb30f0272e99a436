"""A run on a head of its own, watched: what Prometheus reads of it is what it logged, and `vitrail top` shows it."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from head import Head, start_head
from mlflow import MlflowClient
from ray.job_submission import JobSubmissionClient
from test_grafana_dashboard import expressions, series_of
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cluster.watching import run_metrics as metrics
from vitrail.cluster.watching.grafana import DASHBOARD
from vitrail.cluster.watching.run_metrics import ALL_METRICS, RunMetric
from vitrail.tracking.job_runs import runs_of_job
from vitrail.training.throughput import ThroughputCard

ROOT = Path(__file__).parents[2]
STEPS, VALIDATE_AFTER = 400, 100
_SAMPLE = re.compile(r"^(ray_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LOGGED = {
    metrics.IMAGES_PER_SECOND: "train/images_per_s",
    metrics.DATA_WAIT: "train/data_wait_share",
    metrics.LEARNING_RATE: "train/lr",
    metrics.GRADIENT_NORM: "train/grad_norm",
    metrics.MIOU: "val/mIoU",
    metrics.BEST_MIOU: "best/val_mIoU",
}


@dataclass(frozen=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Watched:
    """A head, what its machine's metrics port said while a run went on, and what `vitrail top` said."""

    head: Head
    seen: list[Sample] = field(default_factory=list)
    screens: list[str] = field(default_factory=list)

    def get(self, path: str) -> Any:
        signed = {"Authorization": f"Bearer {self.head.token}"}
        answer = requests.get(f"{self.head.address}/{path}", headers=signed, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def scrape(self) -> list[Sample]:
        """All that the machine's port says now, which asks for no token."""
        (node,) = self.get("nodes?view=summary")["data"]["summary"]
        port = node["raylet"]["metricsExportPort"]
        text = requests.get(f"http://{node['ip']}:{port}/metrics", timeout=30).text
        return [
            Sample(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
            for name, labels, value in _SAMPLE.findall(text)
        ]

    def of_runs(self) -> list[Sample]:
        """What runs show now, which is also kept."""
        found = [sample for sample in self.scrape() if sample.name.startswith("ray_vitrail_")]
        self.seen += found
        return found

    def values(self, metric: RunMetric, **labels: str) -> list[float]:
        """Everything that was seen of a metric, in order."""
        wanted = labels.items()
        return [s.value for s in self.seen if s.name == metric.series and wanted <= s.labels.items()]

    def top(self, *options: str, **environment: str) -> tuple[int, str]:
        settings = {**self.head.environment(), "RAY_ADDRESS": "", "COLUMNS": "80", **environment}
        result = CliRunner().invoke(app, ["top", "--once", *options], env=settings)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    def workers(self) -> list[int]:
        """Process ids of the run's workers."""
        actors = self.get("api/v0/actors?detail=1")["data"]["result"]["result"]
        return [a["pid"] for a in actors if a["class_name"] == "RayTrainWorker" and a["state"] == "ALIVE"]

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.head.address, headers={"Authorization": f"Bearer {self.head.token}"})

    def until(self, happens: Callable[[], object], what: str, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not happens():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A head with three CPUs and nothing on it, whose metrics are a second old at most."""
    folder = tmp_path_factory.mktemp("watched")
    environment = {"RAY_metrics_report_interval_ms": "1000", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    with start_head(folder, num_cpus=3, environment=environment) as head:
        yield Watched(head)


@pytest.fixture(scope="module")
def watched(empty: Watched, tiny_data: Path) -> Watched:
    """The same after a run of two workers, one of which was killed after the first validation."""
    command = [sys.executable, ROOT / "jobs/train.py", "upernet_vit-nano_mln_128x128_1k", "--data", tiny_data]
    command += ["--name", "night", "--workers", 2, "--steps", STEPS, "--max-failures", 1]
    changes = ["global_batch=4", "schedule.warmup_steps=1", "transforms.scale=[256,64]", "transforms.crop_size=64"]
    for change in [*changes, "model.backbone.img_size=64", f"val_interval={VALIDATE_AFTER}"]:
        command += ["--set", f"'{change}'"]
    client = empty.client()
    client.submit_job(
        entrypoint=" ".join(map(str, command)),
        submission_id="night-1",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform"), "VITRAIL_JOB": "night-1"}},
        metadata={"vitrail.name": "night", "vitrail.owner": "ada"},
    )

    def log() -> str:
        return str(client.get_job_logs("night-1"))

    def reads(metric: RunMetric, least: float) -> bool:
        assert client.get_job_status("night-1") != "FAILED", log()
        empty.of_runs()
        return max(empty.values(metric), default=-1.0) >= least

    empty.until(lambda: reads(metrics.MIOU, 0.0) and reads(metrics.STEP, VALIDATE_AFTER + 20), "a validation")
    empty.until(lambda: "training" in empty.top()[1], "top's row of a run that trains")
    empty.screens.append(empty.top()[1])
    os.kill(empty.workers()[0], signal.SIGKILL)
    empty.until(lambda: reads(metrics.RESTARTS, 1) and reads(metrics.LOST_TO_RESTARTS, 0.1), "a restart")
    empty.until(lambda: reads(metrics.STEP, STEPS - 100), "the last steps")
    empty.until(lambda: client.get_job_status("night-1").is_terminal(), "the run's end")
    assert client.get_job_status("night-1") == "SUCCEEDED", log()
    return empty


@pytest.mark.long
def test_top_says_that_nothing_runs(empty: Watched) -> None:
    empty.until(lambda: "(head)" in empty.top()[1], "the head as a machine")
    code, output = empty.top()
    assert code == 0
    lines = output.splitlines()
    assert lines[0].startswith("0.0 images/s   0 running, 0 waiting   CPUs 0/3")
    assert "no jobs" in lines
    assert "(head)" in lines[-1] and " 0/3 " in lines[-1]


@pytest.mark.long
def test_prometheus_reads_what_the_run_has_logged(watched: Watched) -> None:
    uri = f"sqlite:///{watched.head.runs / 'mlflow.db'}"
    (run,) = runs_of_job(uri, "night-1")
    client = MlflowClient(uri)
    for metric, key in LOGGED.items():
        logged = [point.value for point in client.get_metric_history(run.run_id, key)]
        seen = set(watched.values(metric, run="night", job_id="night-1"))
        assert seen and all(any(value == pytest.approx(known) for known in logged) for value in seen), key
    for part, key in (("all", "loss"), ("decode", "decode.loss_ce"), ("aux", "aux.loss_ce")):
        logged = [point.value for point in client.get_metric_history(run.run_id, f"train/{key}")]
        seen = set(watched.values(metrics.LOSS, part=part))
        assert len(seen) > 3 and all(any(value == pytest.approx(known) for known in logged) for value in seen), key
    steps = watched.values(metrics.STEP)
    assert set(steps) <= {point.step for point in client.get_metric_history(run.run_id, "train/loss")}
    assert set(watched.values(metrics.PLANNED_STEPS)) == {STEPS}
    assert set(watched.values(metrics.WORKERS)) == {2}
    assert set(watched.values(metrics.VALIDATED_STEP)) <= set(range(0, STEPS + 1, VALIDATE_AFTER))


@pytest.mark.long
def test_prometheus_and_the_throughput_card_agree(watched: Watched) -> None:
    card = ThroughputCard.model_validate_json((watched.head.runs / "night/throughput.json").read_text())
    assert watched.values(metrics.RESTARTS)[-1] == card.restarts == 1
    assert watched.values(metrics.LOST_TO_RESTARTS)[-1] == pytest.approx(card.lost_to_restarts_s)
    assert watched.values(metrics.SKIPPED_STEPS)[-1] == 0
    # The card's is since the restart, and so are these.
    rates = watched.values(metrics.IMAGES_PER_SECOND)[-20:]
    assert sum(rates) / len(rates) == pytest.approx(card.images_per_s, rel=0.3)
    for rank in ("0", "1"):
        own = watched.values(metrics.WORKER_IMAGES_PER_SECOND, rank=rank)[-20:]
        assert sum(own) / len(own) == pytest.approx(card.images_per_s_per_worker, rel=0.3)
        assert all(0 <= share <= 1 for share in watched.values(metrics.WORKER_DATA_WAIT, rank=rank))


@pytest.mark.long
def test_every_metric_is_there_with_its_labels_and_no_other_of_ours(watched: Watched) -> None:
    for metric in ALL_METRICS:
        labels = {
            frozenset(s.labels) & {"run", "job_id", "rank", "part"} for s in watched.seen if s.name == metric.series
        }
        assert labels == {frozenset(metric.labels)}, metric.name


@pytest.mark.long
def test_dashboard_asks_for_what_a_machine_says(watched: Watched) -> None:
    asked: dict[str, set[str]] = {}
    for expression, _ in expressions(json.loads(DASHBOARD.read_text())):
        for name, labels in series_of(expression):
            if "gpu" not in name and "gram" not in name:  # which only machines with one say
                asked.setdefault(name, set()).update(labels)
    said: dict[str, set[str]] = {}

    def all_said() -> bool:
        # Ray says what is of the machine itself every five seconds.
        for sample in [*watched.seen, *watched.scrape()]:
            said.setdefault(sample.name, set()).update(sample.labels)
        return all(labels <= said.get(name, set()) for name, labels in asked.items())

    watched.until(all_said, f"all of {asked}", timeout_s=30)


@pytest.mark.long
def test_run_that_has_ended_shows_nothing_any_more(watched: Watched) -> None:
    watched.until(lambda: not watched.of_runs(), "the end of the run's gauges", timeout_s=60)


@pytest.mark.long
def test_top_shows_a_run_and_forgets_its_rates_when_it_has_ended(watched: Watched) -> None:
    lines = watched.screens[0].splitlines()
    assert max(map(len, lines)) <= 80
    rate, running = re.match(r"([\d.]+) images/s   (\d) running, 0 waiting   CPUs 2/3", lines[0]).groups()  # type: ignore[union-attr]
    assert float(rate) > 0 and running == "1"
    (row,) = [line.split() for line in lines if line.startswith("night")]
    assert row[1:3] == ["training", "ada"]
    assert re.fullmatch(rf"\d+/{STEPS}", row[5]) and row[6] == rate
    assert re.fullmatch(r"\d+%", row[7]) and re.fullmatch(r"[\d.]+%", row[8])
    code, output = watched.top()
    assert code == 0
    assert output.startswith("0.0 images/s   0 running")
    (row,) = [line.split() for line in output.splitlines() if line.startswith("night")]
    assert row[1] == "succeeded" and row[-1].endswith("%") and rate not in row


@pytest.mark.long
def test_top_shows_the_newest_of_many_jobs(watched: Watched) -> None:
    client = watched.client()
    for number in range(50):
        # They wait for a GPU, of which there is none, and cost nothing.
        client.submit_job(entrypoint="true", submission_id=f"many-{number}", entrypoint_num_gpus=1)
    code, output = watched.top()
    assert code == 0
    waiting = [line for line in output.splitlines() if line.startswith("many-")]
    assert len(waiting) == 50 and all(" pending " in line for line in waiting)
    assert "0 running, 50 waiting" in output


@pytest.mark.long
def test_top_says_that_a_cluster_is_out_of_reach(watched: Watched) -> None:
    code, output = watched.top("--address", "http://127.0.0.1:1")
    assert code == 1
    assert "error: the cluster at http://127.0.0.1:1: nothing answers" in output
    code, output = watched.top(RAY_AUTH_TOKEN="0" * 64)
    assert code == 1
    assert "refuses the token" in output
