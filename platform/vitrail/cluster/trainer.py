"""Running one training run on a Ray cluster: its identity, its workers, its end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from vitrail.checkpoint import CHECKPOINTS, CheckpointInfo, best_checkpoint, latest_checkpoint, read_info
from vitrail.cluster.progress import show_progress
from vitrail.cluster.run_tracker import open_tracker
from vitrail.cluster.runtime import check_feasible
from vitrail.config import RunConfig
from vitrail.errors import UsageError, VitrailError
from vitrail.tracking.registration import register
from vitrail.tracking.registry import Version

_COLLECTIVE_TIMEOUT_S = 600
_START_FAILURES = 3
RUN_FILE = "run.json"


class RunExistsError(UsageError):
    """A run folder that was not asked to be continued, or that belongs to another configuration."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"{self.folder} {self.reason}"


class TrainingError(VitrailError):
    """Training failed on some workers."""

    def __init__(self, name: str, failures: dict[int, str], folder: str) -> None:
        super().__init__(name, failures, folder)
        self.name, self.failures, self.folder = name, failures, folder

    def __str__(self) -> str:
        lines = [f"rank {rank}: {text}" for rank, text in sorted(self.failures.items())]
        return f"run {self.name} failed\n" + "\n".join(lines) + f"\nits checkpoints are kept in {self.folder}"


class TrackingUnavailableError(VitrailError):
    """A checkpoint could not be registered, because MLflow does not answer."""

    def __init__(self, tracking_uri: str, checkpoint: str) -> None:
        super().__init__(tracking_uri, checkpoint)
        self.tracking_uri, self.checkpoint = tracking_uri, checkpoint

    def __str__(self) -> str:
        return (
            f"training is complete, but MLflow at {self.tracking_uri} does not answer; when it is back, "
            f"run the same command with --resume to register {self.checkpoint}"
        )


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run left its best and its last checkpoint."""

    best: Path
    best_info: CheckpointInfo
    last: Path
    last_info: CheckpointInfo

    @property
    def best_miou(self) -> float:
        """Validation mIoU of the best checkpoint, 0..1."""
        assert self.best_info.scores is not None
        return self.best_info.scores.mIoU


def train(config: RunConfig, *, resume: bool = False, show: bool = True, callbacks: Any = None) -> TrainResult:
    """Train until the recipe's last step and return the best checkpoint; Ray must be started.

    A run that has reached its last step is returned as it is.

    Raises:
        RunExistsError: the folder holds a run and `resume` is off, or a run of another identity.
        CoverageError, PretrainedUnavailableError, WeightFileError: the weights to start from cannot be used.
        InfeasibleError: the cluster cannot hold the workers.
        TrainingError: workers failed more often than `config.max_failures` allows.
    """
    _check_start(config)
    claim_folder(config, resume=resume)
    finished = finished_result(config)
    if finished is not None:
        return finished
    check_feasible(config.workers, cpus_per_worker=config.cpus_per_worker, gpus_per_worker=config.gpus_per_worker)
    with show_progress(config.name, enabled=show) as board:
        try:
            _build_trainer(config, board, callbacks).fit()
        except ray.train.TrainingFailedError as error:
            open_tracker(config).finish("FAILED")
            raise _explained(config, error) from error
    return read_result(config)


def finished_result(config: RunConfig) -> TrainResult | None:
    """What the run left, if it has reached its last step."""
    root = Path(config.folder) / CHECKPOINTS
    best, last = best_checkpoint(root), latest_checkpoint(root)
    if best is None or last is None:
        return None
    result = TrainResult(best, read_info(best), last, read_info(last))
    return result if result.last_info.step == config.recipe.total_steps else None


def read_result(config: RunConfig) -> TrainResult:
    """What a run that has reached its last step left."""
    result = finished_result(config)
    if result is None:
        raise UsageError(f"{config.folder} holds no checkpoint of step {config.recipe.total_steps}")
    return result


def register_best(config: RunConfig, result: TrainResult, *, name: str | None = None) -> Version:
    """Make the run's best checkpoint a version of the registered model `name` (the data set's name by default).

    Raises:
        TrackingUnavailableError: MLflow does not answer; the run itself is complete and its checkpoint is kept.
    """
    assert config.tracking is not None
    tracker = open_tracker(config)
    tracker.flush()
    tracker.finish("FINISHED")
    if tracker.run_id is None:
        raise TrackingUnavailableError(config.tracking.uri, str(result.best))
    model_name = name or result.best_info.data.name
    return register(result.best, name=model_name, run_id=tracker.run_id, tracking_uri=config.tracking.uri)


def claim_folder(config: RunConfig, *, resume: bool) -> None:
    """Make the run's folder this run's own, or check that it already is."""
    path = Path(config.folder) / RUN_FILE
    if path.is_file():
        found = json.loads(path.read_text())
        different = _differences(found["identity"], config.identity())
        if different:
            raise RunExistsError(
                config.folder, "holds another run: " + "; ".join(different) + "; choose another --name"
            )
        if not resume:
            raise RunExistsError(
                config.folder, "already holds this run; continue it with --resume or choose another --name"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".writing")
        aside.write_text(
            json.dumps({"identity": config.identity(), "config": config.model_dump(mode="json")}, indent=1)
        )
        aside.rename(path)
    except OSError as error:
        raise UsageError(f"cannot write the run's folder {config.folder}: {error.strerror}") from error


def _check_start(config: RunConfig) -> None:
    """Try the pretrained weights on the model before workers, whose start costs minutes, and the folder are taken."""
    source = config.recipe.pretrained
    if source is None or latest_checkpoint(Path(config.folder) / CHECKPOINTS) is not None:
        return
    from vitrail.models.segmentor import Segmentor  # late: the controller loads this module too, without timm
    from vitrail.models.weights import load_pretrained

    coverage = load_pretrained(Segmentor(config.recipe.model), source)
    print(f"starts from {source}: {coverage.backbone:.2%} of the backbone's parameters", flush=True)


def _enter_worker(settings: dict[str, Any]) -> None:
    """Import the worker where it runs: the controller and the driver, which also load this module, do without it."""
    from vitrail.cluster.worker import train_worker

    train_worker(settings)


def _build_trainer(config: RunConfig, board: Any, callbacks: Any) -> TorchTrainer:
    resources = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return TorchTrainer(
        _enter_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "board": board},
        torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=config.folder,
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=_START_FAILURES
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.keep_checkpoints, checkpoint_score_attribute="mIoU", checkpoint_score_order="max"
            ),
            callbacks=callbacks,
        ),
    )


def _explained(config: RunConfig, error: Exception) -> Exception:
    """Our own error where a worker raised one; otherwise each rank's last line."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    ours = [failure for failure in failures.values() if isinstance(failure, VitrailError)]
    if ours:
        return ours[0]
    texts = {rank: f"{type(failure).__name__}: {failure}".strip() for rank, failure in failures.items()}
    return TrainingError(config.name, texts or {-1: str(error)}, config.folder)


def _differences(found: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*found, *asked}):
        before, now = found.get(key), asked.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key} is {before!r} there and {now!r} here")
    return lines
