"""What rank 0 tells the outside while it trains: the driver, MLflow, Prometheus, the checkpoint's description."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoint import BestScore, CheckpointInfo, DataSource
from vitrail.cluster.board import RunBoard
from vitrail.cluster.identity import THROUGHPUT
from vitrail.cluster.progress import TrainRates, TrainStatus
from vitrail.cluster.run_tracker import open_tracker
from vitrail.cluster.validation import ValidationFailed, draw_panels
from vitrail.cluster.watching import run_metrics
from vitrail.cluster.watching.run_metrics import RunMetrics
from vitrail.config import RunConfig
from vitrail.data.manifest import Manifest
from vitrail.data.order import StreamPlan
from vitrail.data.storage import Folder
from vitrail.evaluation.pictures import Pixels
from vitrail.evaluation.predictor import Evaluation, Predictor
from vitrail.tracking.tracker import NullTracker, Status, Tracker
from vitrail.training.checkpoint import score_record
from vitrail.training.continuity import Continuity, RestartClock
from vitrail.training.finite import NonFiniteStep
from vitrail.training.throughput import ThroughputCard

_FLUSH_TIMEOUT_S = 5.0


class Reporter:
    """Reports for rank 0; the other ranks show their own rates to Prometheus, and nothing else."""

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        tracker: Tracker,
        *,
        plan: StreamPlan,
        board: RunBoard | None,
        resumed: CheckpointInfo | None,
    ) -> None:
        rank = plan.rank
        self._config = config
        self._plan = plan
        self._manifest = manifest
        self._tracker = tracker
        self._rank = rank
        self._board = board if rank == 0 else None
        self._best = _best_so_far(resumed)
        self._scores: dict[str, float] = {}
        self._newest_scored = 0
        self._clock = RestartClock(Path(config.folder)) if rank == 0 else None
        self.ends_as: Status = "FINISHED"
        """What the run is marked as in MLflow when the workers end."""
        self._status = TrainStatus("starting", 0, config.recipe.total_steps)
        self._metrics = RunMetrics.open(config.name, rank=rank)

    @classmethod
    @contextmanager
    def open(
        cls,
        config: RunConfig,
        manifest: Manifest,
        *,
        plan: StreamPlan,
        board: RunBoard | None,
        resumed: CheckpointInfo | None = None,
    ) -> Iterator["Reporter"]:
        """A reporter whose MLflow run is finished when the block ends well, and left open for a restart otherwise."""
        tracker = open_tracker(config) if plan.rank == 0 else NullTracker()
        for split, context in (("training", "train"), ("validation", "val")):
            name = f"{manifest.name}-{split}"
            tracker.log_dataset(name, digest=manifest.fingerprint, context=context, source=config.data)
        reporter = cls(config, manifest, tracker, plan=plan, board=board, resumed=resumed)
        try:
            yield reporter
        except BaseException:
            tracker.flush(_FLUSH_TIMEOUT_S)
            raise
        tracker.finish(reporter.ends_as)

    def started_from(self, start: dict[str, Any] | None) -> None:
        """Note which weights training began with: their source, checksum and coverage."""
        if start is None:
            self._tracker.set_tags({"vitrail.start": "random weights"})
            return
        covered = f"{start['source']}, {start['backbone']:.2%} of the backbone"
        self._tracker.set_tags({"vitrail.start": covered, "vitrail.start_sha256": str(start["sha256"])})
        self._tracker.log_dict(start, "start.json")

    def steps(self, step: int, lr: float, readings: dict[str, float], *, skipped: int) -> None:
        """Report the mean losses and rates of the last steps, and how many were passed over so far."""
        self._metrics.set_worker(readings, share=self._plan.share / self._plan.global_batch)
        if self._clock is None:
            return
        self._clock.reached(step)
        metrics = {f"train/{name}": value for name, value in readings.items()}
        self._tracker.log_metrics({**metrics, "train/lr": lr}, step=step)
        images_left = (self._config.recipe.total_steps - step) * self._config.recipe.global_batch
        rates = TrainRates(
            loss=readings["loss"],
            lr=lr,
            images_per_s=readings["images_per_s"],
            data_wait_share=readings["data_wait_share"],
            seconds_left=images_left / readings["images_per_s"],
        )
        self._post(phase="training", step=step, rates=rates)
        self._metrics.set_steps(readings)
        self._metrics.set(
            {
                run_metrics.STEP: step,
                run_metrics.PLANNED_STEPS: self._config.recipe.total_steps,
                run_metrics.LEARNING_RATE: lr,
                run_metrics.REMAINING: rates.seconds_left,
                run_metrics.WORKERS: self._plan.world_size,
                run_metrics.RESTARTS: self.restarts.restarts,
                run_metrics.LOST_TO_RESTARTS: self.restarts.lost_s,
                run_metrics.SKIPPED_STEPS: skipped,
            }
        )
        if self._best is not None:
            self._metrics.set({run_metrics.BEST_MIOU: self._best[0]})

    def skipped(self, steps: Sequence[NonFiniteStep], ids: Sequence[str], total: int) -> None:
        """Note steps that were passed over, with all workers' samples of the first of them."""
        first = steps[0].step
        text = f"step {first}: loss or gradient is NaN or infinite; samples: {', '.join(ids)}\n"
        self._tracker.log_text(text, f"non_finite/step_{first:06d}.txt")
        self._tracker.log_metrics({"train/skipped_steps": float(total)}, step=steps[-1].step)
        self._post(phase=f"passed over step {first}, which was not finite")

    @property
    def restarts(self) -> Continuity:
        """What restarts have cost so far."""
        assert self._clock is not None
        return self._clock.kept

    def throughput(self, card: ThroughputCard) -> None:
        """Leave the run's throughput card with the run, in MLflow and on the driver."""
        (Path(self._config.folder) / THROUGHPUT).write_text(card.model_dump_json(indent=1))
        self._tracker.log_dict(card.model_dump(), THROUGHPUT)
        values = card.model_dump(exclude={"device", "precision"})
        self._tracker.log_metrics(
            {f"throughput/{name}": float(value) for name, value in values.items()}, step=self._config.recipe.total_steps
        )

    def phase(self, name: str, step: int) -> None:
        """Say what the workers are doing now."""
        self._post(phase=name, step=step)

    def validation(self, step: int, evaluation: Evaluation) -> None:
        """Report the scores of a validation, and the best so far."""
        if self._rank != 0:
            return
        scores = evaluation.matrix.scores()
        if self._best is None or scores.miou > self._best[0]:
            self._best = (scores.miou, step)
        names = self._manifest.classes
        per_class = {f"val/IoU/{_metric_name(name)}": float(iou) for name, iou in zip(names, scores.iou, strict=True)}
        self._scores = {"mIoU": scores.miou, "mAcc": scores.macc, "aAcc": scores.aacc}
        summary = {"val/mIoU": scores.miou, "val/mAcc": scores.macc, "val/aAcc": scores.aacc}
        best = {"best/val_mIoU": self._best[0], "best/step": float(self._best[1])}
        # MLflow shows the value of the highest step, and a validation beside the run may come after a later one.
        self._newest_scored = max(self._newest_scored, step)
        self._tracker.log_metrics(best, step=self._newest_scored)
        present = {name: value for name, value in per_class.items() if value == value}
        self._tracker.log_metrics({**summary, **present}, step=step)
        columns: dict[str, Sequence[Any]] = {
            "class": list(names),
            "IoU": _rounded(scores.iou),
            "Acc": _rounded(scores.acc),
        }
        self._tracker.log_table(columns, "tables/per_class.json")
        self._post(phase="training", step=step, miou=scores.miou)
        self._metrics.set(
            {
                run_metrics.MIOU: scores.miou,
                run_metrics.BEST_MIOU: self._best[0],
                run_metrics.VALIDATED_STEP: step,
            }
        )

    def pictures(self, predictor: Predictor, *, step: int) -> None:
        """Log what the model makes of a few fixed validation images."""
        if self._rank == 0 and not isinstance(self._tracker, NullTracker):
            self._log_panels(draw_panels(self._config, predictor), step)

    def collect(self) -> None:
        """Report what validations beside the run have found since the last call."""
        if self._board is None or not self._config.validate_beside:
            return
        for result in self._board.take_results():
            if isinstance(result, ValidationFailed):
                self._tracker.log_text(f"{result.reason}\n", f"validation_failed/step_{result.step:06d}.txt")
                self._post(phase=f"could not validate step {result.step}: {result.reason}")
            else:
                self.validation(result.step, result.evaluation)
                self._log_panels(result.panels, result.step)

    def _log_panels(self, panels: Mapping[str, Pixels], step: int) -> None:
        for name, panel in panels.items():
            self._tracker.log_image(f"val/{_metric_name(name)}", panel, step=step)

    @property
    def last_scores(self) -> dict[str, float]:
        """Of the last validation since the start; empty before."""
        return self._scores

    def describe(
        self, step: int, evaluation: Evaluation | None, start: dict[str, Any] | None, *, validating: bool = False
    ) -> CheckpointInfo:
        """What a checkpoint saved now is; scored if it was validated now, or to be scored beside training."""
        manifest = self._manifest
        return CheckpointInfo(
            step=step,
            recipe=self._config.recipe,
            classes=manifest.classes,
            palette=manifest.palette,
            reduce_zero_label=manifest.reduce_zero_label,
            data=DataSource(
                name=manifest.name,
                fingerprint=manifest.fingerprint,
                val_images=manifest.split("validation").num_samples,
                uri=str(Folder.at(self._config.data)),
            ),
            seed=self._config.seed,
            run_key=self._config.run_key,
            scores=score_record(evaluation.matrix.scores(), evaluation.images) if evaluation is not None else None,
            validating=validating,
            best=BestScore(mIoU=self._best[0], step=self._best[1]) if self._best else None,
            mlflow_run_id=self._tracker.run_id,
            start=start,
        )

    def _post(self, **changes: Any) -> None:
        if self._board is not None:
            self._status = replace(self._status, **changes)
            self._board.post(self._status)


def _best_so_far(resumed: CheckpointInfo | None) -> tuple[float, int] | None:
    if resumed is None:
        return None
    if resumed.best is not None:
        return resumed.best.mIoU, resumed.best.step
    return (resumed.scores.mIoU, resumed.step) if resumed.scores else None  # written by an older version


def _rounded(values: Any) -> list[float | None]:
    return [None if value != value else round(float(value), 4) for value in values]


def _metric_name(name: str) -> str:
    """MLflow takes letters, digits and `_-. /:` in keys."""
    return re.sub(r"[^\w\-. ]", "_", name)
