"""Train a segmentor, data parallel, and register its best checkpoint.

    uv run jobs/train.py upernet_vit-nano_mln_128x128_1k --data DIR --workers 2

A run is continued with --resume, from its newest checkpoint and exactly where that was.
"""

from pathlib import Path
from typing import Annotated

import typer

from vitrail import options
from vitrail.cluster.asked import TrainingAsked
from vitrail.config import IngestChoice
from vitrail.errors import exit_codes


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe's name; `vitrail recipes` lists them.")],
    data: options.Data,
    name: Annotated[str | None, typer.Option(help="The run's name.", show_default="recipe and data set")] = None,
    root: options.Root = Path("runs"),
    workers: options.Workers = 1,
    min_workers: Annotated[
        int | None, typer.Option(min=1, help="Go on with so many when machines are lost.", show_default="wait for all")
    ] = None,
    gpus_per_worker: options.GpusPerWorker = 0.0,
    seed: int = 0,
    steps: Annotated[int | None, typer.Option(help="Shorthand for --set total_steps=N.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="A weights file, a timm name, or `none`.")] = None,
    set_: options.Set = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Shorthand for --set global_batch=N.")] = None,
    precision: options.Precision = "auto",
    micro_batch: options.MicroBatch = None,
    compile_: options.Compile = False,
    checkpoint_activations: options.CheckpointActivations = False,
    checkpoints: Annotated[str | None, typer.Option(help="Where else to keep them: a folder, s3:// or gs://.")] = None,
    save_interval: Annotated[float, typer.Option(help="Seconds after which a checkpoint is due.")] = 900.0,
    max_failures: Annotated[int, typer.Option(help="Restarts after failures of workers; -1: any number.")] = 0,
    skip_non_finite: Annotated[int, typer.Option(min=0, help="Steps with a NaN or infinite loss to pass over.")] = 0,
    validate_beside: Annotated[
        bool, typer.Option(help="Validate in a task of its own while training goes on.")
    ] = False,
    ingest: Annotated[IngestChoice, typer.Option(help="Who decodes: workers, or Ray Data.")] = "auto",
    resume: options.Resume = False,
    register: options.Register = None,
    experiment: str = "vitrail",
    tracking_uri: options.TrackingUri = None,
    address: options.Address = None,
) -> None:
    """Train RECIPE on a prepared data set."""
    with exit_codes():
        asked = TrainingAsked(
            recipe=recipe,
            data=data,
            name=name,
            root=root,
            workers=workers,
            min_workers=min_workers,
            gpus_per_worker=gpus_per_worker,
            seed=seed,
            steps=steps,
            pretrained=pretrained,
            set_=set_,
            global_batch=global_batch,
            precision=precision,
            micro_batch=micro_batch,
            compile_=compile_,
            checkpoint_activations=checkpoint_activations,
            checkpoints=checkpoints,
            save_interval=save_interval,
            max_failures=max_failures,
            skip_non_finite=skip_non_finite,
            validate_beside=validate_beside,
            ingest=ingest,
            experiment=experiment,
            tracking_uri=tracking_uri,
        )

        from vitrail.cluster.runtime import ray_cluster
        from vitrail.cluster.trainer import register_best, train

        with ray_cluster(address):
            config = asked.plan()
            result = train(config, resume=resume)
            version = register_best(config, result, name=register)
        print(f"{config.name}: best mIoU {result.best_miou:.2%} at step {result.best_info.step}, {result.best}")
        print(f"registered as {version.name} version {version.number}; promote it with")
        print(f"  vitrail models promote {version.name} {version.number}")


if __name__ == "__main__":
    typer.run(main)
