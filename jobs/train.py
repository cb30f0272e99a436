"""Train a segmentor, data parallel, and register its best checkpoint.

    uv run jobs/train.py upernet_vit-nano_mln_128x128_1k --data DIR --workers 2

A run is continued with --resume, from its newest checkpoint and exactly where that was.
"""

from pathlib import Path
from typing import Annotated

import typer

from vitrail import options
from vitrail.config import IngestChoice, choose_compute, override
from vitrail.errors import exit_codes
from vitrail.recipes import get_recipe


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe's name; `vitrail recipes` lists them.")],
    data: options.Data,
    name: Annotated[str | None, typer.Option(help="The run's name [default: recipe and data set].")] = None,
    root: options.Root = Path("runs"),
    workers: options.Workers = 1,
    min_workers: Annotated[
        int | None, typer.Option(min=1, help="Go on with so many when machines are lost [default: wait for all].")
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
        changes = [f"total_steps={steps}"] if steps else []
        changes += [f"global_batch={global_batch}"] if global_batch else []
        changes += [f"pretrained={'null' if pretrained == 'none' else pretrained}"] if pretrained else []
        chosen = override(get_recipe(recipe), [*changes, *(set_ or [])])
        compute = choose_compute(
            precision,
            gpus=gpus_per_worker > 0,
            compile=compile_,
            checkpoint_activations=checkpoint_activations,
            micro_batch=micro_batch,
        )

        from vitrail.cluster.launch import plan_run
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.cluster.trainer import register_best, train

        with ray_cluster(address):
            config = plan_run(
                chosen,
                data,
                root=root,
                name=name,
                seed=seed,
                workers=workers,
                gpus_per_worker=gpus_per_worker,
                min_workers=min_workers,
                compute=compute,
                checkpoint_root=checkpoints,
                save_interval_s=save_interval,
                max_skipped_steps=skip_non_finite,
                max_failures=max_failures,
                validate_beside=validate_beside,
                ingest=ingest,
                tracking_uri=tracking_uri,
                experiment=experiment,
            )
            result = train(config, resume=resume)
            version = register_best(config, result, name=register)
        print(f"{config.name}: best mIoU {result.best_miou:.2%} at step {result.best_info.step}, {result.best}")
        print(f"registered as {version.name} version {version.number}; promote it with")
        print(f"  vitrail models promote {version.name} {version.number}")


if __name__ == "__main__":
    typer.run(main)
