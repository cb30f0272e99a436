"""One worker's model, optimiser and data, and its place among the other workers of the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.checkpoint import CheckpointError, CheckpointInfo
from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.ray_data_stream import RayDataStream
from vitrail.config import RunConfig
from vitrail.data.manifest import Manifest
from vitrail.data.order import StreamPlan
from vitrail.data.shards import ShardReader
from vitrail.data.stream import ShardStream, TrainingStream
from vitrail.evaluation.predictor import Evaluation, Predictor
from vitrail.evaluation.split import ImageCountError, evaluate_split
from vitrail.models.segmentor import Segmentor
from vitrail.training.batch_norm import synchronise_batch_norm
from vitrail.training.checkpoint import load_state, load_weights
from vitrail.training.micro_batch import fitting_micro_batch
from vitrail.training.optimizer import build_optimizer
from vitrail.training.start import load_start
from vitrail.training.step import DeviceBatch, LossModule, autocast, seed_step, train_step


@dataclass(frozen=True)
class Place:
    """Where this worker stands among all."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def of_worker(cls) -> "Place":
        """As Ray Train has it."""
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, on every worker."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every worker's value, by rank."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values


@dataclass
class Learner:
    """Built by `set_up`; everything that a step, a validation and a checkpoint need."""

    config: RunConfig
    place: Place
    manifest: Manifest
    segmentor: Segmentor
    model: nn.Module
    """What a step calls: the segmentor's loss, inside DistributedDataParallel when there are several workers."""
    optimizer: torch.optim.Optimizer
    micro_batch: int | None
    first_step: int
    skipped: int
    """Steps passed over before this start."""
    resumed: CheckpointInfo | None
    start: dict[str, Any] | None

    @classmethod
    def set_up(cls, config: RunConfig) -> "Learner":
        """Build everything, from the newest good checkpoint of the run where there is one."""
        place = Place.of_worker()
        _prepare_torch(config, place)
        segmentor = Segmentor(config.recipe.model)
        folder, resumed = _newest_checkpoint(config, place)
        start: dict[str, Any] | None = None
        if folder is not None and resumed is not None:
            segmentor.load_state_dict(load_weights(folder))
            start = resumed.start
        elif config.recipe.pretrained is not None:
            start = load_start(segmentor, config.recipe.pretrained).summary()
        segmentor = segmentor.to(place.device)
        micro_batch = _micro_batch(config, place, segmentor)
        if place.world_size > 1:
            synchronise_batch_norm(segmentor)
        model: nn.Module = LossModule(segmentor, config.compute).train()
        if place.world_size > 1:
            # Batch norm's buffers are the same everywhere already.
            model = DistributedDataParallel(
                model,
                device_ids=[place.device] if place.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        optimizer = build_optimizer(segmentor, config.recipe.optimizer, lr=config.recipe.schedule.peak_lr)
        state: dict[str, Any] = {"step": 0}
        if folder is not None:
            state = load_state(folder)
            optimizer.load_state_dict(state["optimizer"])
        return cls(
            config=config,
            place=place,
            manifest=Manifest.load(config.data),
            segmentor=segmentor,
            model=model,
            optimizer=optimizer,
            micro_batch=micro_batch,
            first_step=state["step"],
            skipped=state.get("skipped", 0),
            resumed=resumed,
            start=start,
        )

    @property
    def plan(self) -> StreamPlan:
        """What this worker is to see."""
        return StreamPlan(
            seed=self.config.seed,
            global_batch=self.config.recipe.global_batch,
            rank=self.place.rank,
            world_size=self.place.world_size,
            first_step=self.first_step,
        )

    @property
    def predictor(self) -> Predictor:
        """The model as it stands, ready to predict whole images."""
        context = partial(autocast, self.place.device.type, self.config.compute.precision)
        return Predictor(self.segmentor, self.config.recipe, self.place.device, autocast=context)

    def stream(self) -> TrainingStream:
        """This worker's share of every global batch from the first step on."""
        reader, transforms = ShardReader(self.config.data, "training"), self.config.recipe.transforms
        if self.config.ingest == "ray-data":
            return RayDataStream(reader, transforms, self.plan)
        threads, processes = self.config.decode_threads, self.config.decode_processes
        return ShardStream(reader, transforms, self.plan, threads=threads, processes=processes)

    def step(self, step: int, batch: DeviceBatch, lr: float) -> dict[str, Tensor]:
        """One update; returns the losses and the gradient's norm on the device."""
        recipe = self.config.recipe
        seed_step(self.config.seed, step, self.place.rank)
        return train_step(
            self.model,
            self.optimizer,
            batch,
            lr=lr,
            max_grad_norm=recipe.optimizer.max_grad_norm,
            micro_batch=self.micro_batch,
            weight=len(batch[0]) * self.place.world_size / recipe.global_batch,
        )

    def evaluate(self, on_image: Callable[[], None]) -> Evaluation:
        """Counts over the whole validation set, the same on every worker; `on_image` is called after each of its own.

        Raises:
            ImageCountError: the workers together did not see every image exactly once.
        """
        reader = ShardReader(self.config.data, "validation")
        rank, world_size = self.place.rank, self.place.world_size
        threads = max(1, self.config.cpus_per_worker - 1)
        # Images have hundreds of sizes, each of which would be tuned for.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            evaluation = evaluate_split(
                self.predictor,
                reader,
                self.manifest.num_classes,
                rank=rank,
                world_size=world_size,
                threads=threads,
                on_image=on_image,
            )
        if world_size > 1:
            images = torch.tensor(evaluation.images, device=self.place.device)
            counts = evaluation.matrix.counts.to(self.place.device)
            for tensor in (images, counts):
                dist.all_reduce(tensor)
            evaluation.matrix.counts, evaluation.images = counts, int(images)
        if evaluation.images != len(reader):
            raise ImageCountError(evaluation.images, len(reader))
        return evaluation

    def snapshot(self, step: int, *, skipped: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of weights and state in the host's memory, which training on does not change.

        Order, learning rate and random numbers are functions of the step and the run's seed, so these two are all of
        the position, the schedule's state and the generators' states.
        """
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.segmentor.state_dict().items()}
        optimizer: dict[str, Any] = _copied(self.optimizer.state_dict())
        return weights, {"optimizer": optimizer, "step": step, "seed": self.config.seed, "skipped": skipped}


def _prepare_torch(config: RunConfig, place: Place) -> None:
    torch.set_num_threads(config.cpus_per_worker)
    torch.manual_seed(config.seed)
    if place.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as mmsegmentation does: all crops have one size
        # float32 is to mean float32, as in the published runs; bf16 is the way to be fast.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _newest_checkpoint(config: RunConfig, place: Place) -> tuple[Path | None, CheckpointInfo | None]:
    """The newest good checkpoint as rank 0 sees it, so that all workers start from the same one."""
    store = CheckpointStore.at(config.checkpoints)
    found = store.newest() if place.rank == 0 else None
    if found is None and place.rank == 0 and store.checkpoints():
        raise CheckpointError(config.checkpoints, "none of its checkpoints is good, and to begin anew would hide that")
    found = place.agreed(found)
    return (None, None) if found is None else (found.fetch(), found.info)


def _micro_batch(config: RunConfig, place: Place, segmentor: Segmentor) -> int | None:
    """How many samples go through at once; where that is left open, as many as fit on every worker."""
    chosen = config.compute.micro_batch
    if chosen != "auto":
        return chosen
    share = StreamPlan(
        seed=0, global_batch=config.recipe.global_batch, rank=place.rank, world_size=place.world_size
    ).share
    remembered = Path(config.folder) / "micro_batch.json"
    fits = fitting_micro_batch(
        segmentor, config.recipe, config.compute, share, remembered=remembered, spare_copies=int(place.world_size > 1)
    )
    return int(min(place.gathered(fits)))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
