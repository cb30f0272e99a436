"""Running one training run on a Ray cluster: its identity, its workers, its end."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train

from vitrail.checkpoint import CheckpointInfo
from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.board import RunBoard
from vitrail.cluster.capacity import Machine
from vitrail.cluster.driver import hold_run, stop_on_sigterm
from vitrail.cluster.identity import THROUGHPUT, check_checkpoints, claim_folder
from vitrail.cluster.meeting import MeetingConfig
from vitrail.cluster.progress import show_progress
from vitrail.cluster.recovery import FreshView, NotePlaces, Trainer
from vitrail.cluster.run_errors import RunStoppedError, explained
from vitrail.cluster.run_tracker import open_tracker
from vitrail.cluster.runtime import check_feasible
from vitrail.config import RunConfig
from vitrail.errors import UsageError, VitrailError
from vitrail.tracking.registration import register
from vitrail.tracking.registry import Version
from vitrail.training.throughput import ThroughputCard
from vitrail.training.watchdog import STALLS

_COLLECTIVE_TIMEOUT_S = 600
_START_ATTEMPTS = 60
"""For each failure allowed: ten minutes of waiting for places, for which Ray Train is told to wait 10 s at a time."""
_RAYS_OWN = "ray"
"""Folder beside the checkpoints for what Ray Train keeps of the run."""


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


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    show: bool = True,
    callbacks: Any = None,
    board: RunBoard | None = None,
    startable: Sequence[Machine] | None = None,
) -> TrainResult:
    """Train until the recipe's last step and return the best checkpoint; Ray must be started.

    A run that has reached its last step is returned as it is. Its status is posted to `board`, or shown here from one
    of its own. `startable` is what Ray may start, where this process cannot know: on another machine than the head.

    Raises:
        RunExistsError: the folder holds a run and `resume` is off, or a run of another identity.
        CoverageError, PretrainedUnavailableError, WeightFileError: the weights to start from cannot be used.
        InfeasibleError: the cluster cannot hold the workers.
        RunBusyError: another process drives this run.
        RunStoppedError: this process got a SIGTERM, and the run is saved.
        StartError: the workers found no place for ten minutes, or could not reach each other.
        NonFiniteError, StalledError, CheckpointWriteError: what ended it on a worker, in a word of its own.
        TrainingError: workers failed more often than `config.max_failures` allows.
    """
    _check_start(config)
    check_checkpoints(config)
    claim_folder(config, resume=resume)
    finished = finished_result(config)
    if finished is not None:
        return finished
    workers = config.min_workers or config.workers
    check_feasible(
        workers,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus_per_worker,
        validations=int(config.validate_beside),
        startable=startable,
    )
    with hold_run(Path(config.folder)), _board(config, board) as board:
        ended = _fit(config, board, show=show, callbacks=callbacks)
    if ended["stopped"]:
        raise RunStoppedError(config.name, ended["step"])
    return read_result(config)


@contextmanager
def _board(config: RunConfig, shared: RunBoard | None) -> Iterator[RunBoard]:
    """The run's place on the board that it is to share, or a board of its own until the block ends."""
    if shared is not None:
        yield shared.of(config.name)
        return
    board = RunBoard.open(config.name)
    try:
        yield board
    finally:
        board.close()


def _fit(config: RunConfig, board: RunBoard, *, show: bool, callbacks: Any) -> dict[str, Any]:
    """Run the workers to their end, and say how that was."""
    shutil.rmtree(Path(config.folder) / STALLS, ignore_errors=True)
    try:
        with show_progress(board, config.name, enabled=show), stop_on_sigterm(board):
            result = _build_trainer(config, board, callbacks).fit()
    except ray.train.TrainingFailedError as error:
        open_tracker(config).finish("FAILED")
        ranks = sorted(getattr(error, "worker_failures", {}))
        if ranks:
            print(f"{config.name}: failed on rank {', '.join(map(str, ranks))}", file=sys.stderr, flush=True)
        raise explained(config, error) from error
    ended: dict[str, Any] = result.return_value
    if show and not ended["stopped"]:
        _print_throughput(config)
    return ended


def _print_throughput(config: RunConfig) -> None:
    path = Path(config.folder) / THROUGHPUT
    if path.is_file():
        for line in ThroughputCard.model_validate_json(path.read_text()).lines():
            print(f"{config.name}  {line}", flush=True)


def finished_result(config: RunConfig) -> TrainResult | None:
    """What the run left, if it has reached its last step."""
    store = CheckpointStore.at(config.checkpoints)
    last = store.newest(state=False)
    if last is None or last.info.step < config.recipe.total_steps:
        return None
    best = store.best() or last
    return TrainResult(best.fetch(state=False), best.info, last.fetch(state=False), last.info)


def read_result(config: RunConfig) -> TrainResult:
    """What a run that has reached its last step left."""
    result = finished_result(config)
    if result is None:
        raise UsageError(f"{config.checkpoints} holds no checkpoint of step {config.recipe.total_steps}")
    return result


def register_best(config: RunConfig, result: TrainResult, *, name: str | None = None) -> Version:
    """Make the run's best checkpoint a version of the registered model `name` (the data set's name by default).

    Its page shows what it makes of a few validation images.

    Raises:
        TrackingUnavailableError: MLflow does not answer; the run itself is complete and its checkpoint is kept.
    """
    assert config.tracking is not None
    tracker = open_tracker(config)
    tracker.flush()
    tracker.finish("FINISHED")
    if tracker.run_id is None:
        raise TrackingUnavailableError(config.tracking.uri, str(result.best))
    from vitrail.cluster.validation import draw_checkpoint  # late, as in `_check_start`

    return register(
        result.best,
        name=name or result.best_info.data.name,
        run_id=tracker.run_id,
        tracking_uri=config.tracking.uri,
        pictures=draw_checkpoint(config, result.best),
    )


def _check_start(config: RunConfig) -> None:
    """Try the pretrained weights on the model before workers, whose start costs minutes, and the folder are taken."""
    source = config.recipe.pretrained
    if source is None or CheckpointStore.at(config.checkpoints).checkpoints():
        return
    from vitrail.models.segmentor import Segmentor  # late: the controller loads this module too, without timm
    from vitrail.training.start import load_start

    coverage = load_start(Segmentor(config.recipe.model), source)
    print(f"starts from {source}: {coverage.backbone:.2%} of the backbone's parameters", flush=True)


def _enter_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Import the worker where it runs: the controller and the driver, which also load this module, do without it."""
    from vitrail.cluster.worker import train_worker

    return train_worker(settings)


def _build_trainer(config: RunConfig, board: Any, callbacks: Any) -> Trainer:
    resources = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return Trainer(
        _enter_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "board": board},
        torch_config=MeetingConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,
            elastic_resize_monitor_interval_s=config.resize_interval_s,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        validation_config=_validation(config, board) if config.validate_beside else None,
        run_config=ray.train.RunConfig(
            name=_RAYS_OWN,
            storage_path=config.checkpoints,
            # It keeps pointers to our checkpoints, of which it needs the last alone.
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures,
                # Counted over the whole run, in which each loss of a machine may cost a few.
                controller_failure_limit=-1 if config.max_failures < 0 else _START_ATTEMPTS * (1 + config.max_failures),
            ),
            callbacks=[*(callbacks or []), FreshView(), NotePlaces(board)],
        ),
    )


def _validation(config: RunConfig, board: Any) -> ray.train.ValidationConfig:
    """A task like a worker, which is tried once more where its machine is lost."""
    arguments = {"config": config.model_dump(mode="json"), "board": board}
    place = {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker}
    return ray.train.ValidationConfig(
        fn=_enter_validation,
        task_config=ray.train.ValidationTaskConfig(fn_kwargs=arguments),
        ray_remote_kwargs={**place, "max_retries": 1},
    )


def _enter_validation(checkpoint: Any, *, config: dict[str, Any], board: Any) -> dict[str, Any]:
    """Late, as `_enter_worker`."""
    from vitrail.cluster.validation import validate_checkpoint

    return validate_checkpoint(checkpoint, config=config, board=board)
