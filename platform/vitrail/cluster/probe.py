"""What models cost, found by letting each train and predict for a moment on a machine of the cluster, alone."""

import statistics
from collections.abc import Mapping

import ray

from vitrail.config import ComputeConfig, Recipe, RunConfig
from vitrail.gate.evidence import PredictionCost
from vitrail.sweep.record import Cost

_CPU_BATCH = 4
"""Samples of a training step on a CPU, where the rate hardly depends on it and a whole share may take minutes."""
_REPEATS = 3


def measure_costs(run: RunConfig, recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
    """The cost of each recipe with the workers of `run`, by its key; those of the same model are measured once.

    Each is measured in a process of its own, one after the other; Ray must be started.
    """
    measured: dict[tuple[str, int], Cost] = {}
    costs = {}
    task = ray.remote(num_cpus=run.cpus_per_worker, num_gpus=run.gpus_per_worker, max_calls=1)(_measure)
    for key, recipe in recipes.items():
        share = -(-recipe.global_batch // run.workers)
        batch = share if run.gpus_per_worker else min(share, _CPU_BATCH)
        same = recipe.model.digest(), batch
        if same not in measured:
            measured[same] = ray.get(task.remote(recipe, run.compute, batch, run.cpus_per_worker))
        costs[key] = measured[same]
    return costs


def measure_prediction(recipe: Recipe, *, cpus: int, gpus: float = 0.0) -> PredictionCost:
    """What predicting one image at a time costs in a process of its own; Ray must be started."""
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1)(_measure_prediction)
    cost: PredictionCost = ray.get(task.remote(recipe, cpus))
    return cost


def _measure_prediction(recipe: Recipe, threads: int) -> PredictionCost:
    """In a worker of Ray, which sees the GPU only if it was given one."""
    import platform

    import torch

    from vitrail.benchmark.own_model import OwnModel
    from vitrail.training.throughput import device_name, peak_memory_gib, seconds_each

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    torch.set_num_threads(threads)
    predict = OwnModel(recipe, ComputeConfig(), device.type).build("predict", 1)
    predict_s = statistics.median(seconds_each(predict, device, repeats=2 * _REPEATS))
    where = device_name(device) if device.type == "cuda" else f"{threads} CPUs of {platform.node()}"
    return PredictionCost(images_per_s=1 / predict_s, peak_memory_gib=peak_memory_gib(device), device=where)


def _measure(recipe: Recipe, compute: ComputeConfig, batch: int, threads: int) -> Cost:
    """In a worker of Ray, which sees the GPU only if it was given one."""
    import torch

    from vitrail.benchmark.own_model import OwnModel
    from vitrail.models.flops import nominal_flops
    from vitrail.models.segmentor import count_parameters
    from vitrail.training.throughput import peak_memory_gib, seconds_each

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    torch.set_num_threads(threads)
    model = OwnModel(recipe, compute, device.type)
    # Training first: a CPU process's peak memory is the largest since its start.
    train_s = statistics.median(seconds_each(model.build("train", batch), device, repeats=_REPEATS))
    memory = peak_memory_gib(device)
    predict_s = statistics.median(seconds_each(model.build("predict", 1), device, repeats=_REPEATS))
    return Cost(
        train_images_per_s=batch / train_s,
        predict_images_per_s=1 / predict_s,
        peak_memory_gib=memory,
        parameters=count_parameters(recipe.model),
        nominal_flops=nominal_flops(recipe.model, recipe.transforms.crop_size),
    )
