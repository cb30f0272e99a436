"""How fast each recipe's model trains and predicts, and in how much memory: ours, and mmsegmentation's beside it.

Every side is a process of its own, and all are timed in turn in one run, on the same made-up crops. Rows whose models
are the same are measured once. Figures are medians, ratios medians of the ratio.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitrail.benchmark.asking import NO_PEER, Responder
from vitrail.benchmark.record import Timing, median_ratio
from vitrail.config import ComputeConfig, Recipe
from vitrail.models.flops import TRAINING_FACTOR, computed_flops, nominal_flops
from vitrail.strict import Strict

Work = Literal["train", "predict"]
Device = Literal["cpu", "cuda"]

MEMORY_BATCH = 2
"""Batch size of the published memory column."""
FP32 = "fp32"
"""Our side that computes as the published models were: float32, without TF32."""
PEER_FP32 = "mmsegmentation, fp32"

_TRAIN_BATCHES: dict[Device, tuple[int, ...]] = {"cpu": (MEMORY_BATCH,), "cuda": (MEMORY_BATCH, 16)}
_PREDICT_BATCHES: dict[Device, tuple[int, ...]] = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64)}
_VARIANTS: dict[Device, dict[str, ComputeConfig]] = {
    "cpu": {FP32: ComputeConfig(), "bf16": ComputeConfig(precision="bf16")},
    "cuda": {
        FP32: ComputeConfig(),
        "bf16": ComputeConfig(precision="bf16"),
        "bf16, compiled": ComputeConfig(precision="bf16", compile=True),
    },
}
_PEERS: dict[Device, dict[str, bool]] = {
    "cpu": {PEER_FP32: False},
    "cuda": {PEER_FP32: False, "mmsegmentation, AMP": True},
}
_TIMES: dict[Device, tuple[int, int]] = {"cpu": (1, 0), "cuda": (10, 2)}
"""Repetitions that make up a measurement, and those before it that do not count."""
_PUBLISHED_NAME = re.compile(r"upernet_(?P<vit>[a-z]+-[bs]16)(?P<neck>(_ln)?_mln|)_512x512_(?P<steps>\d+k)_ade20k")


class SideFigures(Strict):
    """One side's own figures; by batch size where there are several, None where memory ran out."""

    train_images_per_s: dict[int, float | None]
    predict_images_per_s: dict[int, float | None]
    peak_memory_gib: float | None
    """Of a training step at `MEMORY_BATCH`: allocated on the GPU, or resident of a process on the CPU."""
    matrix_peak_flops: float
    """Per second, of a large matrix product in this side's precision."""
    nominal_utilisation: float | None
    """Nominal FLOPs of the fastest training over that peak; above 1 is possible where fewer are computed."""
    computed_utilisation: float | None
    """FLOPs that are computed in the fastest training over that peak."""

    @property
    def best_train(self) -> float | None:
        """Images per second at the best batch size."""
        return max((rate for rate in self.train_images_per_s.values() if rate is not None), default=None)

    @property
    def best_predict(self) -> float | None:
        """Images per second at the best batch size."""
        return max((rate for rate in self.predict_images_per_s.values() if rate is not None), default=None)


class ModelFigures(Strict):
    """One architecture, measured on one machine."""

    crop_size: int
    nominal_flops: float
    """Of one image's forward pass with both heads, in mmsegmentation's order."""
    computed_flops: float
    """The same as we compute it."""
    best: str
    """Our side that trains fastest."""
    ours: dict[str, SideFigures]
    peers: dict[str, SideFigures]
    ratios: dict[str, dict[str, float]]
    """Our speed over the peer's: by "ours / peer", then by what was done."""


@dataclass
class Measured:
    """One side's times of one piece of work at one batch size; no times if memory ran out."""

    timing: Timing = field(default_factory=Timing)
    peak_bytes: int = 0

    def images_per_s(self, batch: int) -> float | None:
        """By the median time, or None."""
        return batch / self.timing.median_wall_s if self.timing.wall_s else None


Measurements = dict[tuple[Work, int], dict[str, Measured]]


def measure_models(
    recipes: Iterable[Recipe],
    *,
    device: Device,
    repeats: int,
    peer_python: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """What a record holds so far, after each architecture: its figures by a recipe's name, and which row is which."""
    results: dict[str, Any] = {"device": device, "repeats": repeats, "peer": None, "architectures": {}, "rows": {}}
    recipes = list(recipes)
    same = measured_as(recipes)
    for recipe in recipes:
        if same[recipe.name] == recipe.name:
            bench = ModelBenchmark(recipe, device=device, repeats=repeats, peer_python=peer_python, tell=tell)
            results["architectures"][recipe.name] = bench.measure().model_dump(mode="json")
            results["peer"] = results["peer"] or bench.peer
        results["rows"][recipe.name] = same[recipe.name]
        yield results


def measured_as(recipes: Iterable[Recipe]) -> dict[str, str]:
    """For each recipe, the first of those with the same model, stochastic depth included."""
    first: dict[str, str] = {}
    return {recipe.name: first.setdefault(recipe.model.digest(), recipe.name) for recipe in recipes}


class ModelBenchmark:
    """The measurement of one architecture."""

    def __init__(
        self, recipe: Recipe, *, device: Device, repeats: int, peer_python: Path | None, tell: Callable[[str], None]
    ) -> None:
        self.recipe, self.device, self.repeats, self.tell = recipe, device, repeats, tell
        self._peer_python, self._peer_config = peer_python, peer_config(recipe)
        self.peer: dict[str, Any] | None = None
        """Versions of the peer, once it was asked."""

    def measure(self) -> ModelFigures:
        """Time all sides, each in a process that ends with the measurement.

        Raises:
            UsageError: a side died; the peer's Python has no mmsegmentation, for one.
        """
        with ExitStack() as stack:
            ours = {name: stack.enter_context(self._own(compute)) for name, compute in _VARIANTS[self.device].items()}
            peers: dict[str, Responder] = {}
            if self._peer_python is not None and self._peer_config is not None:
                peers = {name: stack.enter_context(self._peer(amp)) for name, amp in _PEERS[self.device].items()}
            for responder in peers.values():
                self.peer = responder.ask(do="describe")["versions"]
            sides = ours | peers
            peaks = {name: side.ask(do="matrix peak")["flops_per_s"] for name, side in sides.items()}
            # Training at the small batch comes first: a CPU process's peak memory is the largest since its start.
            tasks: list[tuple[Work, int]] = [("train", batch) for batch in _TRAIN_BATCHES[self.device]]
            tasks += [("predict", batch) for batch in _PREDICT_BATCHES[self.device]]
            measured = {(work, batch): self._in_turn(sides, work, batch) for work, batch in tasks}
        return self._figures(measured, peaks, list(ours), list(peers))

    def _in_turn(self, sides: dict[str, Responder], work: Work, batch: int) -> dict[str, Measured]:
        """All sides' times; the first repetition warms up."""
        found = {name: Measured() for name in sides}
        running = {name for name, side in sides.items() if "failed" not in side.ask(do="load", work=work, batch=batch)}
        times, warm = _TIMES[self.device]
        for _ in range(self.repeats + 1):
            for name in [name for name in sides if name in running]:
                answer = sides[name].ask(do="run", times=times, warm=warm)
                if "failed" in answer:
                    running.discard(name)
                    found[name] = Measured()
                    continue
                found[name].timing.add(answer["wall_s"], answer["cpu_s"])
                found[name].peak_bytes = max(found[name].peak_bytes, answer["peak_bytes"])
        rates = {name: each.images_per_s(batch) for name, each in found.items()}
        shown = ", ".join(f"{name} {rate:.2f}" if rate else f"{name} out of memory" for name, rate in rates.items())
        self.tell(f"{self.recipe.name}  {work}, batch {batch} (images/s): {shown}")
        return found

    def _figures(
        self, measured: Measurements, peaks: dict[str, float], ours: list[str], peers: list[str]
    ) -> ModelFigures:
        crop_size = self.recipe.transforms.crop_size
        nominal, computed = (count(self.recipe.model, crop_size) for count in (nominal_flops, computed_flops))
        own = {name: _side(measured, name, peaks[name], nominal, computed) for name in ours}
        return ModelFigures(
            crop_size=crop_size,
            nominal_flops=nominal,
            computed_flops=computed,
            best=max(own, key=lambda name: own[name].best_train or 0.0),
            ours=own,
            # The peer computes what is nominal.
            peers={name: _side(measured, name, peaks[name], nominal, nominal) for name in peers},
            ratios={f"{name} / {peer}": _ratios(measured, name, peer) for name in ours for peer in peers},
        )

    def _own(self, compute: ComputeConfig) -> Any:
        settings = self._settings() | {"recipe": self.recipe.name, "compute": compute.model_dump(mode="json")}
        return Responder.start(sys.executable, "own_model.py", [json.dumps(settings)])

    def _peer(self, amp: bool) -> Any:
        assert self._peer_python is not None
        side = self.recipe.transforms.crop_size
        settings = self._settings() | {"config": self._peer_config, "side": side, "amp": amp}
        return Responder.start(self._peer_python, "peer_model.py", [json.dumps(settings)], complaint=NO_PEER)

    def _settings(self) -> dict[str, Any]:
        return {"device": self.device, "threads": len(os.sched_getaffinity(0))}


def peer_config(recipe: Recipe) -> str | None:
    """The file of mmsegmentation's `configs/vit` that a published row was trained by; None for a recipe of ours."""
    match = _PUBLISHED_NAME.fullmatch(recipe.name)
    if match is None:
        return None
    neck = match["neck"].replace("_ln", "-ln")
    return f"vit_{match['vit']}{neck}_upernet_8xb2-{match['steps']}_ade20k-512x512.py"


def _side(measured: Measurements, name: str, peak: float, nominal: float, computed: float) -> SideFigures:
    train = {batch: sides[name].images_per_s(batch) for (work, batch), sides in measured.items() if work == "train"}
    predict = {batch: sides[name].images_per_s(batch) for (work, batch), sides in measured.items() if work == "predict"}
    best = max((rate for rate in train.values() if rate is not None), default=None)
    memory = measured["train", MEMORY_BATCH][name].peak_bytes
    return SideFigures(
        train_images_per_s=train,
        predict_images_per_s=predict,
        peak_memory_gib=memory / 2**30 if memory else None,
        matrix_peak_flops=peak,
        nominal_utilisation=best and best * TRAINING_FACTOR * nominal / peak,
        computed_utilisation=best and best * TRAINING_FACTOR * computed / peak,
    )


def _ratios(measured: Measurements, own: str, peer: str) -> dict[str, float]:
    """Medians over repetitions done in turn, wherever both had the memory; and memory itself."""
    ratios: dict[str, float] = {}
    for (work, batch), sides in measured.items():
        if sides[own].timing.wall_s and sides[peer].timing.wall_s:
            ratios[f"{work}, batch {batch}"] = median_ratio(sides[peer].timing, sides[own].timing)
    for work in ("train", "predict"):
        best = [
            max((sides[name].images_per_s(batch) or 0.0 for (w, batch), sides in measured.items() if w == work))
            for name in (own, peer)
        ]
        if all(best):
            ratios[f"{work}, each at its best batch size"] = best[0] / best[1]
    memory = [measured["train", MEMORY_BATCH][name].peak_bytes for name in (own, peer)]
    if all(memory):
        ratios[f"memory of a training step, batch {MEMORY_BATCH}"] = memory[0] / memory[1]
    return ratios
