"""From what a user asks for to a `RunConfig`: names, folders, and each worker's share of the machine."""

import sys
from pathlib import Path

from vitrail.cluster.capacity import granted_cpus
from vitrail.cluster.runtime import check_feasible, cpu_share, has_cpu_machines
from vitrail.config import ComputeConfig, IngestChoice, Recipe, RunConfig, TrackingConfig
from vitrail.data.manifest import Manifest
from vitrail.data.order import slice_for
from vitrail.data.storage import Folder, Place
from vitrail.errors import UsageError
from vitrail.overrides import choose_compute
from vitrail.tracking.store import default_tracking_uri

_MAX_THREADS = 3


def plan_run(
    recipe: Recipe,
    data: Place,
    *,
    root: Path,
    name: str | None = None,
    seed: int = 0,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    min_workers: int | None = None,
    compute: ComputeConfig | None = None,
    checkpoint_root: str | None = None,
    save_interval_s: float = 900.0,
    max_failures: int = 0,
    max_skipped_steps: int = 0,
    validate_beside: bool = False,
    ingest: IngestChoice = "auto",
    cluster_share: float = 1.0,
    tracking_uri: str | None = None,
    experiment: str = "vitrail",
    parent_run_key: str | None = None,
) -> RunConfig:
    """The run of `recipe` on the data set at `data`, below `root`; Ray must be started.

    The model gets as many classes as the data set has. Each worker gets an equal share of the CPUs that the run may
    take, which is `cluster_share` of the cluster's (of those beside GPUs, if it needs one); of half of them, where Ray
    Data's tasks are to have the rest.

    Raises:
        UsageError: the data set lacks a training or validation split, or a batch has fewer samples than workers.
    """
    manifest = Manifest.load(data)
    for split in ("training", "validation"):
        if split not in manifest.splits:
            raise UsageError(f"{data} has no {split} split; training needs training and validation images")
    slice_for(recipe.global_batch, rank=0, world_size=workers)
    if ingest == "auto":
        ingest = "ray-data" if gpus_per_worker and has_cpu_machines() else "worker"
    # Machines without a GPU are then Ray Data's alone, so none need be left on those with one.
    shared = ingest == "ray-data" and not has_cpu_machines()
    ours = 1.0 if granted_cpus() else cluster_share  # what the queue counts is for each trial's workers already
    cpus = cpu_share(workers + validate_beside, of=ours * (0.5 if shared else 1.0), on_gpu_machines=gpus_per_worker > 0)
    if ingest == "ray-data":
        check_feasible(workers, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker, spare_cpus=1)
    name = name or f"{recipe.name}-{manifest.name}"
    return RunConfig(
        name=name,
        recipe=recipe.with_classes(manifest.num_classes),
        data=Folder.at(data).uri,
        data_fingerprint=manifest.fingerprint,
        folder=str((root / name).resolve()),
        seed=seed,
        workers=workers,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus_per_worker,
        ingest=ingest,
        decode_threads=max(1, cpus - 1) if gpus_per_worker else 1,
        # A few threads do not hinder each other yet, and start at once.
        decode_processes=cpus - 1 if gpus_per_worker and cpus > _MAX_THREADS else 0,
        min_workers=min_workers,
        compute=compute or choose_compute("auto", gpus=gpus_per_worker > 0),
        checkpoint_root=Folder.at(checkpoint_root).child(name).uri if checkpoint_root else None,
        save_interval_s=save_interval_s,
        max_failures=max_failures,
        max_skipped_steps=max_skipped_steps,
        validate_beside=validate_beside,
        tracking=TrackingConfig(
            uri=tracking_uri or default_tracking_uri(root),
            experiment=experiment,
            parent_run_key=parent_run_key,
            source=Path(sys.argv[0]).name,
        ),
    )
