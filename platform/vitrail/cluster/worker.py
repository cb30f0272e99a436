"""What each training worker runs: step, report, validate and save, until the last step or until it is told to stop."""

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train

from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.board import RunBoard
from vitrail.cluster.learner import Learner
from vitrail.cluster.lockstep import Command, Lockstep
from vitrail.cluster.reporting import Reporter
from vitrail.cluster.validation import point_to
from vitrail.config import RunConfig
from vitrail.evaluation.predictor import Evaluation
from vitrail.models.flops import TRAINING_FACTOR, nominal_flops
from vitrail.training.checkpoint import save_checkpoint
from vitrail.training.finite import FiniteCheck, NonFiniteError
from vitrail.training.meter import Meter
from vitrail.training.prefetch import DevicePrefetcher, PlacedBatch
from vitrail.training.step import validation_steps
from vitrail.training.throughput import (
    ThroughputCard,
    device_name,
    measure_matrix_peak,
    peak_memory_gib,
    seconds_each,
)
from vitrail.training.watchdog import STALLS, Watchdog, stall_file

_STEPS_PER_READING = 10
"""Steps from one reading of losses to the next, which waits for the device."""
_HEADROOM_STEPS = 5
_SWITCH_INTERVAL_S = 5e-4
"""The loop gives Python's lock up at every operation, and asks for it back; a thread that decodes, or sends to MLflow,
would otherwise keep it for 5 ms each time."""
_VALIDATION_POLL_S = 5.0


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one of the run's workers; `settings` holds a dumped `RunConfig` and its `RunBoard` or None.

    Returns the step at which it ended, and whether it was told to.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    config, board = RunConfig.model_validate(settings["config"]), settings["board"]
    rank = ray.train.get_context().get_world_rank()
    watched = stall_file(Path(config.folder) / STALLS, rank)
    with Watchdog(watched, timeout_s=config.stall_timeout_s) as watchdog, ExitStack() as stack:
        learner = Learner.set_up(config)
        place = learner.place
        reporter = stack.enter_context(
            Reporter.open(config, learner.manifest, plan=learner.plan, board=board, resumed=learner.resumed)
        )
        lockstep = stack.enter_context(_lockstep(config, board, learner))
        stream = stack.enter_context(learner.stream())
        loop = _Loop(learner, reporter, lockstep, watchdog, DevicePrefetcher(stream, place.device))
        return loop.run()


def _lockstep(config: RunConfig, board: RunBoard | None, learner: Learner) -> Lockstep:
    place = learner.place
    return Lockstep(rank=place.rank, world_size=place.world_size, board=board, save_interval_s=config.save_interval_s)


@dataclass
class _Loop:
    """The training loop of one worker."""

    learner: Learner
    reporter: Reporter
    lockstep: Lockstep
    watchdog: Watchdog
    batches: DevicePrefetcher
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self.config, self.recipe = self.learner.config, self.learner.config.recipe
        self.finite = FiniteCheck(skipped=self.learner.skipped)

    def run(self) -> dict[str, Any]:
        """Until the last step, or until the lockstep says stop."""
        total, validate_after = self.recipe.total_steps, validation_steps(self.recipe)
        if self.learner.first_step == 0:
            self.reporter.started_from(self.learner.start)
            self._validate(0)
        batch = None
        for step in range(self.learner.first_step, total):
            command = self.lockstep.next()
            if command in (Command.SAVE, Command.STOP) and step > self.learner.first_step:
                self._read(step)
                self._save(step)
            if command == Command.STOP:
                self.reporter.ends_as = "KILLED"
                return {"step": step, "stopped": True}
            batch = self._step(step)
            if (step + 1) % _STEPS_PER_READING == 0 or step + 1 in validate_after:
                self._read(step + 1)
            if step + 1 in validate_after:
                with self.meter.pause():
                    self._validate_and_save(step + 1)
        self._await_validations()
        if batch is not None:
            self._measure(batch)
        return {"step": total, "stopped": False}

    def _step(self, step: int) -> PlacedBatch:
        self.watchdog.beat(f"step {step}: waiting for a batch")
        batch = self.batches.take()
        self.watchdog.beat(f"step {step}: computing it, and exchanging gradients")
        values = self.learner.step(step, batch.tensors, self.recipe.schedule.lr(step, self.recipe.total_steps))
        self.finite.add(step, values["grad_norm"], batch.ids)
        self.batches.prepare_next()
        self.meter.add(values, images=self.recipe.global_batch, wait_s=self.batches.take_wait_s())
        return batch

    def _read(self, done: int) -> None:
        """Read the losses since the last reading, which waits for the device, and report them."""
        if not self.meter.steps:
            return
        readings = self.meter.read()
        self._check_finite()
        self.reporter.collect()
        lr = self.recipe.schedule.lr(done - 1, self.recipe.total_steps)
        self.reporter.steps(done, lr, readings, skipped=self.finite.skipped)

    def _check_finite(self) -> None:
        bad = self.finite.read()
        if not bad:
            return
        # The norm is the same everywhere, so all workers come here together.
        ids = [name for ids in self.learner.place.gathered(bad[0].ids) for name in ids]
        self.reporter.skipped(bad, ids, self.finite.skipped)
        if self.finite.skipped > self.config.max_skipped_steps:
            raise NonFiniteError(bad[0].step, tuple(ids), self.finite.skipped, self.config.max_skipped_steps)

    def _validate_and_save(self, step: int) -> None:
        # At the last step the workers have nothing else to do.
        if self.config.validate_beside and step < self.recipe.total_steps:
            self._save(step, validating=True)
        else:
            self._save(step, self._validate(step))

    def _await_validations(self) -> None:
        """Wait for those that still run beside, and report them; one that its task took with it is never heard of."""
        if not self.config.validate_beside or self.learner.place.rank != 0:
            return
        waiting = True
        while waiting:
            self.watchdog.beat("waiting for validations beside the run")
            begin = time.monotonic()
            ray.train.get_all_reported_checkpoints(
                consistency_mode=ray.train.CheckpointConsistencyMode.VALIDATED, timeout_s=_VALIDATION_POLL_S
            )
            waiting = time.monotonic() - begin >= _VALIDATION_POLL_S
            self.reporter.collect()

    def _validate(self, step: int) -> Evaluation:
        """Score the model on the whole validation set. Done before the first step too, so that what would fail there
        fails before the GPU hours, and so that MLflow's pictures begin at step 0."""
        doing = f"step {step}: validating"
        self.watchdog.beat(doing)
        self.reporter.phase("validating", step)
        evaluation = self.learner.evaluate(on_image=lambda: self.watchdog.beat(doing))
        self.reporter.validation(step, evaluation)
        self.reporter.pictures(self.learner.predictor, step=step)
        return evaluation

    def _save(self, step: int, evaluation: Evaluation | None = None, *, validating: bool = False) -> None:
        """Copy weights and state, and let Ray Train write them while training goes on; rank 0's do for all. If it is
        `validating`, Ray Train then has them scored beside the workers."""
        self.watchdog.beat(f"step {step}: saving")
        metrics = {"step": step, **(self.reporter.last_scores if evaluation is not None else {})}
        if self.learner.place.rank != 0:
            ray.train.report(metrics)
        else:
            weights, state = self.learner.snapshot(step, skipped=self.finite.skipped)
            info = self.reporter.describe(step, evaluation, self.learner.start, validating=validating)
            config = self.config

            def write(_: ray.train.Checkpoint, __: str) -> ray.train.Checkpoint:
                saved = save_checkpoint(config.checkpoints, info, weights=weights, state=state)
                CheckpointStore.at(config.checkpoints).prune(newest=config.keep_newest, best=config.keep_best)
                return point_to(saved)

            # Ray wants a folder to upload, and deletes it afterwards: an empty one of its own.
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp(prefix="vitrail-")),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=write,
                delete_local_checkpoint_after_upload=True,
                validation=validating,
            )
        self.lockstep.saved()

    def _measure(self, batch: PlacedBatch) -> None:
        """Fill in the throughput card. Weights are saved already, so that steps on one batch do no harm."""
        self.watchdog.beat("measuring the throughput")
        place, steady = self.learner.place, self.meter.steady
        cached_s = seconds_each(
            lambda: self.learner.step(self.recipe.total_steps, batch.tensors, 0.0),
            place.device,
            repeats=_HEADROOM_STEPS,
        )
        peak = measure_matrix_peak(place.device, self.config.compute.precision)
        if place.rank != 0:
            return
        rate = steady.images / steady.seconds
        flops = TRAINING_FACTOR * nominal_flops(self.recipe.model, self.recipe.transforms.crop_size)
        running_s = self.meter.totals.seconds + self.meter.first.seconds + self.meter.paused_s
        restarts = self.reporter.restarts
        self.reporter.throughput(
            ThroughputCard(
                device=device_name(place.device),
                workers=place.world_size,
                precision=self.config.compute.precision,
                images_per_s=rate,
                images_per_s_per_worker=rate / place.world_size,
                flops_per_image=flops,
                matrix_peak_flops=peak,
                utilisation=rate / place.world_size * flops / peak,
                data_wait_share=min(1.0, steady.wait_s / steady.seconds),
                input_headroom=self.recipe.global_batch / (sum(cached_s) / len(cached_s)) / rate,
                validation_share=self.meter.paused_s / running_s,
                restarts=restarts.restarts,
                lost_to_restarts_s=restarts.lost_s,
                peak_memory_gib=peak_memory_gib(place.device),
            )
        )
