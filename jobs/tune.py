"""Sweep necks and learning-rate schedules: every combination is a training run, all under one parent in MLflow.

uv run jobs/tune.py upernet_vit-nano_128x128_1k --data DIR --neck none --neck mln --schedule poly --schedule cosine
"""

from pathlib import Path
from typing import Annotated

import typer

from vitrail.config import override
from vitrail.errors import exit_codes
from vitrail.recipes import NECKS, get_recipe


def main(
    recipe: Annotated[str, typer.Argument(help="The recipe that trials vary.")],
    data: Annotated[str, typer.Option(help="A data set made by pipelines/prepare.py: folder, s3:// or gs://.")],
    neck: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NECKS)} [default: all].")] = None,
    schedule: Annotated[list[str] | None, typer.Option(help="poly, linear_poly, cosine or constant.")] = None,
    peak_lr: Annotated[list[float] | None, typer.Option(help="[default: the recipe's]")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="[default: 0]")] = None,
    name: Annotated[str, typer.Option(help="The sweep's name.")] = "sweep",
    root: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    workers: Annotated[int, typer.Option(min=1, help="Workers of each trial.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0)] = 0.0,
    steps: Annotated[int | None, typer.Option(help="Shorthand for --set total_steps=N.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="path.to.field=value of the recipe.")] = None,
    experiment: str = "vitrail",
    tracking_uri: Annotated[str | None, typer.Option(envvar="MLFLOW_TRACKING_URI")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster [default: RAY_ADDRESS, or this machine].")] = None,
) -> None:
    """Run a grid of trials and print them, best first."""
    with exit_codes():
        changes = [f"total_steps={steps}"] if steps else []
        base = override(get_recipe(recipe), [*changes, *(set_ or [])])

        from vitrail.cluster.runtime import ray_cluster
        from vitrail.cluster.tuner import SearchSpace, print_trials, sweep

        space = SearchSpace(
            necks=tuple(neck or NECKS),
            schedules=tuple(schedule or ("poly", "cosine")),
            peak_lrs=tuple(peak_lr or ()),
            seeds=tuple(seed or (0,)),
        )
        with ray_cluster(address):
            result = sweep(
                base,
                space,
                data,
                root=root,
                name=name,
                workers=workers,
                gpus_per_worker=gpus_per_worker,
                tracking_uri=tracking_uri,
                experiment=experiment,
            )
        print_trials(result)
        print(f"best: {result.best.trial.name}, mIoU {result.best.miou:.2%}, {result.best.checkpoint}")


if __name__ == "__main__":
    typer.run(main)
