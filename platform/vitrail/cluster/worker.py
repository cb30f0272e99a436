"""What each training worker runs: set up, then step, report and validate until the last step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.checkpoint import CHECKPOINTS, latest_checkpoint, read_info
from vitrail.cluster.ray_data_stream import RayDataStream
from vitrail.cluster.reporting import Reporter
from vitrail.config import RunConfig
from vitrail.data.batch import Batch
from vitrail.data.manifest import Manifest
from vitrail.data.order import StreamPlan
from vitrail.data.shards import ShardReader
from vitrail.data.stream import ShardStream, TrainingStream
from vitrail.errors import VitrailError
from vitrail.evaluation.predictor import Evaluation, Predictor, evaluate
from vitrail.models.segmentor import Segmentor
from vitrail.models.weights import load_pretrained
from vitrail.training.checkpoint import load_state, load_weights, save_checkpoint
from vitrail.training.meter import Meter
from vitrail.training.optimizer import build_optimizer
from vitrail.training.step import LossModule, seed_step, train_step, validation_steps


class ValidationCountError(VitrailError):
    """The workers together did not see every validation image exactly once."""

    def __init__(self, seen: int, expected: int) -> None:
        super().__init__(seen, expected)
        self.seen, self.expected = seen, expected

    def __str__(self) -> str:
        return f"validation saw {self.seen} images of {self.expected}; its scores would be wrong"


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one of the run's workers; `settings` holds a dumped `RunConfig` and a `ProgressBoard` or None."""
    worker = TrainWorker.set_up(RunConfig.model_validate(settings["config"]))
    recipe = worker.config.recipe
    validate_after, meter = validation_steps(recipe), Meter()
    with Reporter.open(worker.config, worker.manifest, rank=worker.rank, board=settings["board"]) as reporter:
        if worker.first_step == 0:
            reporter.started_from(worker.start)
            worker.validate(0, reporter)
        with worker.stream() as stream:
            for step in range(worker.first_step, recipe.total_steps):
                batch = next(stream)
                lr = recipe.schedule.lr(step, recipe.total_steps)
                seed_step(worker.config.seed, step, worker.rank)
                meter.add(worker.step(batch, lr), images=recipe.global_batch, wait_s=stream.take_wait_s())
                done = step + 1
                if reporter.is_due(done):
                    reporter.steps(done, lr, meter.read())
                if done in validate_after:
                    with meter.pause():
                        worker.validate_and_save(done, reporter)


@dataclass
class TrainWorker:
    """One worker's model, optimiser and data, and its place among the others."""

    config: RunConfig
    manifest: Manifest
    rank: int
    world_size: int
    device: torch.device
    segmentor: Segmentor
    model: nn.Module
    """What a step calls: the segmentor's loss, inside DistributedDataParallel when there are several workers."""
    optimizer: torch.optim.Optimizer
    first_step: int
    start: dict[str, Any] | None

    @classmethod
    def set_up(cls, config: RunConfig) -> "TrainWorker":
        """Build everything, from the newest checkpoint of the run where there is one."""
        context = ray.train.get_context()
        rank, world_size = context.get_world_rank(), context.get_world_size()
        device = ray.train.torch.get_device()
        torch.set_num_threads(config.cpus_per_worker)
        torch.manual_seed(config.seed)
        segmentor = Segmentor(config.recipe.model)
        checkpoint = _agreed_checkpoint(config, rank, world_size)
        start: dict[str, Any] | None = None
        if checkpoint is not None:
            segmentor.load_state_dict(load_weights(checkpoint))
            start = read_info(checkpoint).start
        elif config.recipe.pretrained is not None:
            start = load_pretrained(segmentor, config.recipe.pretrained).summary()
        segmentor = _synchronise_batch_norm(segmentor.to(device), world_size)
        model: nn.Module = LossModule(segmentor).train()
        if world_size > 1:
            model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        optimizer = build_optimizer(segmentor, config.recipe.optimizer, lr=config.recipe.schedule.peak_lr)
        first_step = 0
        if checkpoint is not None:
            state = load_state(checkpoint)
            optimizer.load_state_dict(state["optimizer"])
            first_step = state["step"]
        manifest = Manifest.load(config.data)
        return cls(config, manifest, rank, world_size, device, segmentor, model, optimizer, first_step, start)

    @property
    def predictor(self) -> Predictor:
        """The model as it stands, ready to predict whole images."""
        return Predictor(self.segmentor, self.config.recipe, self.device)

    def stream(self) -> TrainingStream:
        """This worker's share of every global batch from the first step on."""
        plan = StreamPlan(
            seed=self.config.seed,
            global_batch=self.config.recipe.global_batch,
            rank=self.rank,
            world_size=self.world_size,
            first_step=self.first_step,
        )
        reader, transforms = ShardReader(self.config.data, "training"), self.config.recipe.transforms
        if self.config.ingest == "ray-data":
            return RayDataStream(reader, transforms, plan)
        threads, processes = self.config.decode_threads, self.config.decode_processes
        return ShardStream(reader, transforms, plan, threads=threads, processes=processes)

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One update; returns the losses on the device."""
        images, sizes, labels = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (batch.images, batch.sizes, batch.labels)
        )
        max_norm = self.config.recipe.optimizer.max_grad_norm
        return train_step(self.model, self.optimizer, (images, sizes, labels), lr=lr, max_grad_norm=max_norm)

    def validate(self, step: int, reporter: Reporter) -> Evaluation:
        """Score the model on the whole validation set. Done before the first step too, so that what would fail there
        fails before the GPU hours, and so that MLflow's pictures begin at step 0."""
        reporter.phase("validating", step)
        evaluation = self._evaluate()
        reporter.validation(step, evaluation)
        reporter.pictures(self.predictor, step=step)
        return evaluation

    def validate_and_save(self, step: int, reporter: Reporter) -> None:
        """Score the model, save it, and tell Ray."""
        evaluation = self.validate(step, reporter)
        scores = evaluation.matrix.scores()
        checkpoint = None
        if self.rank == 0:
            info = reporter.describe(step, evaluation, self.start)
            state = {"optimizer": self.optimizer.state_dict(), "step": step}
            root = Path(self.config.folder) / CHECKPOINTS
            folder = save_checkpoint(root, info, weights=self.segmentor.state_dict(), state=state)
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        metrics = {"step": step, "mIoU": scores.miou, "mAcc": scores.macc, "aAcc": scores.aacc}
        # The checkpoint already lies where Ray would have put it, complete.
        mode = ray.train.CheckpointUploadMode.NO_UPLOAD
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_mode=mode)

    def _evaluate(self) -> Evaluation:
        self._share_buffers()
        reader = ShardReader(self.config.data, "validation")
        mine = (reader[index] for index in range(self.rank, len(reader), self.world_size))
        samples = ((sample.image, sample.label) for sample in mine)
        evaluation = evaluate(self.predictor, samples, self.manifest.num_classes)
        if self.world_size > 1:
            images = torch.tensor(evaluation.images, device=self.device)
            counts = evaluation.matrix.counts.to(self.device)
            for tensor in (images, counts):
                dist.all_reduce(tensor)
            evaluation.matrix.counts, evaluation.images = counts, int(images)
        if evaluation.images != len(reader):
            raise ValidationCountError(evaluation.images, len(reader))
        return evaluation

    def _share_buffers(self) -> None:
        """Give every worker rank 0's batch-norm statistics, as the next training step would."""
        if self.world_size > 1:
            for buffer in self.segmentor.buffers():
                dist.broadcast(buffer, src=0)


def _agreed_checkpoint(config: RunConfig, rank: int, world_size: int) -> Path | None:
    """The newest good checkpoint as rank 0 sees it, so that all workers start from the same one."""
    found = [latest_checkpoint(Path(config.folder) / CHECKPOINTS) if rank == 0 else None]
    if world_size > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


def _synchronise_batch_norm(segmentor: Segmentor, world_size: int) -> Segmentor:
    """Statistics over the global batch on GPUs. On CPUs each worker normalises by its own share of the batch."""
    if world_size > 1 and next(segmentor.parameters()).is_cuda:
        converted: Segmentor = nn.SyncBatchNorm.convert_sync_batchnorm(segmentor)  # type: ignore[no-untyped-call]
        return converted
    return segmentor
