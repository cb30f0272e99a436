"""What Ray costs a training run: its steady images per second against a loop of the same steps without Ray.

Each run through Ray Train is followed by the bare loop in this process, on as many threads: on batches that are there
already, and on the reader that a worker would have. The latter tells Ray's cost from that of decoding. Ray's workers
have a niceness of 15 and this process has none, so that whatever else the machine does slows the runs alone.
"""

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitrail.cluster.identity import THROUGHPUT
from vitrail.cluster.launch import plan_run
from vitrail.cluster.runtime import ray_cluster
from vitrail.cluster.trainer import train
from vitrail.config import Ingest, Recipe, RunConfig
from vitrail.data.batch import Batch
from vitrail.data.order import StreamPlan
from vitrail.data.shards import ShardReader
from vitrail.data.stream import ShardStream
from vitrail.models.segmentor import Segmentor
from vitrail.schedules import Schedule
from vitrail.training.optimizer import build_optimizer
from vitrail.training.step import LossModule, seed_step, train_step
from vitrail.training.throughput import ThroughputCard

_NAMES: dict[Ingest, str] = {"worker": "in-worker reader", "ray-data": "Ray Data"}
_CACHED_BATCHES = 8
_WARM_STEPS = 5


def measure_end_to_end(
    recipe: Recipe,
    data: str,
    scratch: Path,
    *,
    workers: int,
    steps: int,
    repeats: int,
    gpus_per_worker: float = 0.0,
    ingests: Sequence[Ingest] = ("worker", "ray-data"),
) -> dict[str, Any]:
    """Runs fed in these ways, each `repeats` times; runs and tracking go to `scratch`.

    Args:
        steps: of a run, of which the first few do not count, and of a bare loop.
    """
    recipe = recipe.model_copy(
        update={"total_steps": steps, "val_interval": steps, "schedule": _short(recipe.schedule, steps)}
    )
    results: dict[str, Any] = {"recipe": recipe.name, "workers": workers, "steps": steps, "batch": recipe.global_batch}
    for ingest in ingests:
        comparison = Comparison()
        for index in range(repeats):
            with ray_cluster():
                config = plan_run(
                    recipe,
                    data,
                    root=scratch,
                    name=f"{ingest}-{index}",
                    workers=workers,
                    gpus_per_worker=gpus_per_worker,
                    ingest=ingest,
                )
                train(config, show=False)
            comparison.add(read_card(Path(config.folder)), BareLoop(config))
        results[f"Ray Train, {_NAMES[ingest]}"] = comparison.results()
    return results


def read_card(folder: Path) -> ThroughputCard:
    """The throughput card that a run left in its folder."""
    return ThroughputCard.model_validate_json((folder / THROUGHPUT).read_text())


@dataclass
class Comparison:
    """Runs and, after each, the bare loop."""

    cards: list[ThroughputCard] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    fed: list[float] = field(default_factory=list)

    def add(self, card: ThroughputCard, bare: "BareLoop") -> None:
        """Note a run, and time the bare loop now that it is over."""
        self.cards.append(card)
        self.cached.append(bare.images_per_s_cached())
        self.fed.append(bare.images_per_s_fed())

    def results(self) -> dict[str, float]:
        """Medians over the runs."""
        rates = [card.images_per_s for card in self.cards]
        pairs = {"cached batches": self.cached, "a reader": self.fed}
        return {
            "images/s": statistics.median(rates),
            **{f"bare loop on {name} (images/s)": statistics.median(bare) for name, bare in pairs.items()},
            **{
                f"run / bare loop on {name}": statistics.median(a / b for a, b in zip(rates, bare, strict=True))
                for name, bare in pairs.items()
            },
            "data wait share": statistics.median(card.data_wait_share for card in self.cards),
            "input headroom": statistics.median(card.input_headroom for card in self.cards),
        }


class BareLoop:
    """The steps of a run on this process's device, all workers' threads at its disposal, and nothing around them."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._recipe = config, config.recipe
        self._device = torch.device("cuda" if config.gpus_per_worker else "cpu")
        self._reader = ShardReader(config.data, "training")

    def images_per_s_cached(self) -> float:
        """On a few batches that are decoded already."""
        with self._stream() as stream:
            batches = list(itertools.islice(stream, _CACHED_BATCHES))
        return self._images_per_s(itertools.cycle(batches))

    def images_per_s_fed(self) -> float:
        """On the batches of the run, from a reader as its worker has."""
        with self._stream() as stream:
            return self._images_per_s(stream)

    def _stream(self) -> ShardStream:
        plan = StreamPlan(seed=self._config.seed, global_batch=self._recipe.global_batch)
        threads, processes = self._config.decode_threads, self._config.decode_processes
        return ShardStream(self._reader, self._recipe.transforms, plan, threads=threads, processes=processes)

    def _images_per_s(self, batches: Iterator[Batch]) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(self._config.workers * self._config.cpus_per_worker)
        segmentor = Segmentor(self._recipe.model).to(self._device)
        model = LossModule(segmentor, self._config.compute).train()
        optimizer = build_optimizer(segmentor, self._recipe.optimizer, lr=self._recipe.schedule.peak_lr)
        begin = 0.0
        for step in range(-_WARM_STEPS, self._recipe.total_steps):
            if step == 0:
                begin = self._now()
            batch = next(batches)
            tensors = (torch.from_numpy(array).to(self._device) for array in (batch.images, batch.sizes, batch.labels))
            seed_step(self._config.seed, step, 0)
            lr = self._recipe.schedule.lr(max(step, 0), self._recipe.total_steps)
            images, sizes, labels = tensors
            train_step(
                model,
                optimizer,
                (images, sizes, labels),
                lr=lr,
                max_grad_norm=self._recipe.optimizer.max_grad_norm,
            )
        seconds = self._now() - begin
        torch.set_num_threads(before)
        return self._recipe.total_steps * self._recipe.global_batch / seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _short(schedule: Schedule, steps: int) -> Schedule:
    """The schedule with a warm-up that so few steps have room for."""
    return schedule.model_copy(update={"warmup_steps": min(schedule.warmup_steps, steps // 2)})
