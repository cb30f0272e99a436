"""Sweep necks, learning-rate schedules and whatever else a recipe holds, to a decision.

    uv run jobs/tune.py jobs/spaces/necks.toml --data DIR --seeds 3
    uv run jobs/tune.py upernet_vit-nano_128x128_1k --data DIR --vary neck=none,mln --vary lr=log:1e-4..1e-2 \\
        --search optuna --samples 12
    uv run jobs/tune.py --resume NAME

Every trial is a training run of its own, all under one parent run in MLflow; the report says which differences are
more than noise.
"""

from pathlib import Path
from typing import Annotated

import typer

from vitrail import options
from vitrail.cluster.asked import SweepAsked
from vitrail.errors import exit_codes
from vitrail.sweep.space import DIMENSIONS

_SPACE = "A search space (.toml), or the recipe that --vary varies."
_VARY = f"NAME=A,B,… or NAME=LOW..HIGH or NAME=log:LOW..HIGH; {', '.join(DIMENSIONS)}, or any path.to.field."


def main(
    space: Annotated[str | None, typer.Argument(help=_SPACE)] = None,
    data: options.Data = "",
    vary: Annotated[list[str] | None, typer.Option(help=_VARY)] = None,
    set_: options.Set = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Train every configuration so often.")] = None,
    search: Annotated[str | None, typer.Option(help="grid, random or optuna.", show_default="grid")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Configurations that random and optuna try.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="none, asha or median.", show_default="none")] = None,
    rule: Annotated[str | None, typer.Option(help="Best by score, or by cost within noise of it.")] = None,
    name: Annotated[str, typer.Option(help="The sweep's name.")] = "sweep",
    root: options.Root = Path("runs"),
    workers: options.Workers = 1,
    gpus_per_worker: options.GpusPerWorker = 0.0,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.", show_default="what fits")] = None,
    precision: options.Precision = "auto",
    micro_batch: options.MicroBatch = None,
    compile_: options.Compile = False,
    checkpoint_activations: options.CheckpointActivations = False,
    checkpoints: Annotated[str | None, typer.Option(help="Where else to keep them: a folder, s3:// or gs://.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would run, how long and how much; then end.")] = False,
    resume: Annotated[str | None, typer.Option(help="Go on with the sweep of this name.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="With --resume: run failed trials once more.")] = False,
    then_train: Annotated[str | None, typer.Option(help="Train this recipe with the winner's choices.")] = None,
    register: options.Register = None,
    experiment: str = "vitrail",
    tracking_uri: options.TrackingUri = None,
    address: options.Address = None,
) -> None:
    """Run the trials of SPACE, report them, and register the best."""
    with exit_codes():
        asked = SweepAsked(
            space=space,
            data=data,
            vary=vary,
            set_=set_,
            seeds=seeds,
            search=search,
            samples=samples,
            scheduler=scheduler,
            rule=rule,
            name=name,
            root=root,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            concurrent=concurrent,
            precision=precision,
            micro_batch=micro_batch,
            compile_=compile_,
            checkpoint_activations=checkpoint_activations,
            resume=resume,
            experiment=experiment,
            tracking_uri=tracking_uri,
            checkpoints=checkpoints,
        )

        from vitrail.cluster.runtime import ray_cluster
        from vitrail.cluster.sweep_outcome import announce, conclude
        from vitrail.cluster.sweep_plan import SweepConfig
        from vitrail.cluster.tuner import sweep

        with ray_cluster(address):
            if resume is not None or (options.is_continued() and SweepConfig.is_in(root / name)):
                config, costs = SweepConfig.load(root / (resume or name)), None
            else:
                config = asked.plan()
                config.check_new()
                costs = announce(config)
                if dry_run:
                    return
                config.save()
            record = sweep(config, costs=costs, retry_failed=retry_failed)
            conclude(config, record, register=register, then_train=then_train)


if __name__ == "__main__":
    typer.run(main)
