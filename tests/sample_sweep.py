"""Small sweeps, made from the scores that their trials end with."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.sweep.record import Configuration, Cost, Score, Status, SweepRecord, Trial

STEPS = 2_000


def trial(configuration: Configuration, miou: float | None, *, seed: int = 0, status: Status = "finished") -> Trial:
    """A trial that climbs to `miou` in four validations, of which a stopped one has two; None: it has no validation."""
    shares = (0.5, 0.8, 0.95, 1.0) if status == "finished" else (0.5, 1.0)
    scores = tuple(Score(step=500 * n, miou=share * miou) for n, share in enumerate(shares, 1)) if miou else ()
    return Trial(
        name=f"{'-'.join(map(str, configuration.values()))}-seed{seed}",
        configuration=configuration,
        seed=seed,
        total_steps=STEPS,
        status=status,
        step=500 * len(scores),
        scores=scores,
        seconds=90.0,
        checkpoint=f"/runs/{seed}/best" if miou else None,
        error="CUDA out of memory" if status == "failed" else None,
    )


def record(trials: Sequence[Trial], **fields: Any) -> SweepRecord:
    names = dict.fromkeys(name for trial in trials for name in trial.configuration)
    choices = {
        name: tuple(dict.fromkeys(t.configuration[name] for t in trials if name in t.configuration)) for name in names
    }
    defaults = {
        "name": "necks",
        "recipe": "upernet_vit-nano_128x128_1k",
        "data": "scenes",
        "val_images": 200,
        "device": "NVIDIA A100",
        "workers": 2,
        "search": "grid",
        "scheduler": "none",
        "rule": "score",
        "dimensions": choices,
        "costs": {},
    }
    return SweepRecord(trials=tuple(trials), **defaults | fields)


def sweep_of_necks(scores: Mapping[str, Sequence[float]], **fields: Any) -> SweepRecord:
    """A configuration per neck, a finished seed per score."""
    trials = [trial({"neck": neck}, miou, seed=seed) for neck, all in scores.items() for seed, miou in enumerate(all)]
    return record(trials, **fields)


def cost(predict: float, memory: float = 2.0) -> Cost:
    return Cost(
        train_images_per_s=predict / 3,
        predict_images_per_s=predict,
        peak_memory_gib=memory,
        parameters=57_990_000,
        nominal_flops=6.1e10,
    )
