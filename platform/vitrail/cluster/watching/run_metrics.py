"""What a run shows of itself as Ray metrics: Prometheus reads them from the machines, `grafana.py` draws them.

All are gauges, which Ray (2.60) stops showing two report intervals (20 s) after the worker that set them is gone. So a
run that has ended leaves nothing standing, in whatever way it ended. What a restart counts on from (restarts, steps
passed over) is set anew by the workers that come after it; a counter would begin at nothing with each of them.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ray.util.metrics import Gauge

from vitrail.tracking.environment import JOB_VARIABLE

PREFIX = "ray_"
"""What Ray puts before the names of all metrics."""
SWITCH = "RAY_TRAIN_METRICS_ENABLED"
"""Ray Train's own metrics obey it too; `runtime.start_ray` sets it to 0 where Ray is started for one run."""


@dataclass(frozen=True)
class RunMetric:
    """A gauge: its name without Ray's prefix, what it says, and the labels that tell its series apart.

    No label is `job`: Prometheus has one of that name for where it scrapes.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ("run", "job_id")

    @property
    def series(self) -> str:
        """As Prometheus knows it."""
        return PREFIX + self.name


_PER_WORKER = ("run", "job_id", "rank")

STEP = RunMetric("vitrail_train_step", "Steps that the run has done.")
PLANNED_STEPS = RunMetric("vitrail_train_planned_steps", "Steps that the run is to do.")
IMAGES_PER_SECOND = RunMetric("vitrail_train_images_per_second", "All workers' images over the last steps.")
DATA_WAIT = RunMetric("vitrail_train_data_wait_ratio", "Share of the last steps' time that rank 0 waited for a batch.")
REMAINING = RunMetric("vitrail_train_remaining_seconds", "Until the last step, at the present rate.")
LOSS = RunMetric(
    "vitrail_train_loss", "Mean over the last steps, of the whole and of its parts.", ("run", "job_id", "part")
)
GRADIENT_NORM = RunMetric("vitrail_train_gradient_norm", "Mean over the last steps, before clipping.")
LEARNING_RATE = RunMetric("vitrail_train_learning_rate", "Of the last step.")
WORKERS = RunMetric("vitrail_train_workers", "Workers of the run.")
READ_AT = RunMetric("vitrail_train_reading_timestamp_seconds", "When steps were last read out, in seconds since 1970.")
MIOU = RunMetric("vitrail_validation_miou_ratio", "Of the last validation.")
BEST_MIOU = RunMetric("vitrail_validation_best_miou_ratio", "The highest of all validations.")
VALIDATED_STEP = RunMetric("vitrail_validation_step", "Step of the last validation.")
RESTARTS = RunMetric("vitrail_train_restarts", "Restarts since the run began.")
LOST_TO_RESTARTS = RunMetric("vitrail_train_restart_lost_seconds", "From the last step before each to that step again.")
SKIPPED_STEPS = RunMetric("vitrail_train_skipped_steps", "Steps passed over since the run began, not being finite.")
WORKER_IMAGES_PER_SECOND = RunMetric(
    "vitrail_worker_images_per_second", "One worker's images over the last steps.", _PER_WORKER
)
WORKER_DATA_WAIT = RunMetric(
    "vitrail_worker_data_wait_ratio", "Share of the last steps' time that one worker waited for a batch.", _PER_WORKER
)

ALL_METRICS = tuple(value for value in list(globals().values()) if isinstance(value, RunMetric))


class RunMetrics:
    """One worker's gauges. Setting all takes 60 microseconds, every ten steps; a thread of Ray's sends them."""

    def __init__(self, run: str, *, rank: int) -> None:
        self._labels = {"run": run, "job_id": os.environ.get(JOB_VARIABLE, ""), "rank": str(rank)}
        self._gauges: dict[RunMetric, Gauge] = {}

    @classmethod
    def open(cls, run: str, *, rank: int) -> "RunMetrics":
        """For a worker of the run; does nothing where nobody scrapes."""
        return cls(run, rank=rank) if os.environ.get(SWITCH, "1") != "0" else NullRunMetrics(run, rank=rank)

    def set(self, values: Mapping[RunMetric, float], **labels: str) -> None:
        """Set gauges, whose further labels are `labels`."""
        for metric, value in values.items():
            if metric not in self._gauges:
                self._gauges[metric] = Gauge(metric.name, metric.description, metric.labels)
            known = {**self._labels, **labels}
            self._gauges[metric].set(float(value), tags={label: known[label] for label in metric.labels})

    def set_worker(self, readings: Mapping[str, float], *, share: float) -> None:
        """Set what every worker shows, from its own readings; `share` of the run's images are its own."""
        rate, waited = readings["images_per_s"] * share, readings["data_wait_share"]
        self.set({WORKER_IMAGES_PER_SECOND: rate, WORKER_DATA_WAIT: waited})

    def set_steps(self, readings: Mapping[str, float]) -> None:
        """Set what rank 0 shows of the run's last steps, from a meter's readings, and note that they are of now.

        A run that hangs, or validates, keeps its gauges, and they grow older.
        """
        for name, value in readings.items():
            head, _, kind = name.rpartition(".")
            if kind.startswith("loss"):
                self.set({LOSS: value}, part=head or "all")
        self.set(
            {
                IMAGES_PER_SECOND: readings["images_per_s"],
                DATA_WAIT: readings["data_wait_share"],
                GRADIENT_NORM: readings["grad_norm"],
                READ_AT: time.time(),
            }
        )


class NullRunMetrics(RunMetrics):
    """Sets nothing."""

    def set(self, values: Mapping[RunMetric, float], **labels: str) -> None:
        pass
