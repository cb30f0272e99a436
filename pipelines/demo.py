"""The whole life of a model on one machine: draw data, prepare, sweep, train, register, promote, evaluate, predict.

    uv run pipelines/demo.py

Takes a few minutes on two CPU cores and needs no download. Everything it makes lies in runs/demo, in a job below
VITRAIL_RUNS.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vitrail import options
from vitrail.errors import UsageError, exit_codes
from vitrail.overrides import override

RECIPE = "upernet_vit-nano_mln_128x128_1k"
MODEL = "demo-scenes"
MARKER = "demo.txt"
console = Console()

Root = Annotated[
    Path,
    typer.Option(
        callback=options.run_folder,
        default_factory=partial(options.below_runs, "runs", "demo"),
        show_default="runs/demo, below VITRAIL_RUNS where that is set",
        help="Folder for everything the demo makes.",
    ),
]


def main(
    root: Root,
    replace: Annotated[bool, typer.Option(help="Delete what an earlier demo left there.")] = False,
    resume: options.Resume = False,
    workers: Annotated[int, typer.Option(min=1, help="Training workers.")] = 2,
    images: Annotated[int, typer.Option(min=8, help="Training images to draw.")] = 400,
    schedule: Annotated[
        list[str] | None, typer.Option(help="Swept with both necks; each adds a minute and more.")
    ] = None,
    trial_steps: Annotated[int, typer.Option(min=2, help="Steps of each trial of the sweep.")] = 30,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the main training run.")] = 240,
) -> None:
    """Run every stage and print what came out of it."""
    with exit_codes():
        claim(root, replace=replace, resume=resume)
        started = time.monotonic()
        # Ray and torch take seconds to import: after the checks.
        from vitrail.cluster.evaluate import evaluate_model
        from vitrail.cluster.judge import judge, open_case
        from vitrail.cluster.launch import plan_run
        from vitrail.cluster.predict import predict_folder
        from vitrail.cluster.prepare import prepare
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.cluster.sweep_outcome import best_run, print_configurations
        from vitrail.cluster.sweep_plan import SWEEP_FILE, SweepConfig, plan_sweep
        from vitrail.cluster.trainer import register_best, train
        from vitrail.cluster.tuner import sweep
        from vitrail.data.manifest import MANIFEST_NAME
        from vitrail.data.scenes import draw_scenes
        from vitrail.evaluation.trained import open_model
        from vitrail.sweep.decision import decide
        from vitrail.sweep.space import SearchSpace
        from vitrail.tracking.fetch import fetch_model
        from vitrail.tracking.promotion import CHAMPION, promote
        from vitrail.tracking.registry import get_model
        from vitrail.tracking.runs import metric_history
        from vitrail.tracking.store import default_tracking_uri

        scenes, data, uri = root / "scenes", root / "data", default_tracking_uri(root)
        with ray_cluster():
            with stage("Draw", f"{images} scenes whose classes differ by shape and texture"):
                if not (data / MANIFEST_NAME).is_file():
                    draw_scenes(scenes, train=images, val=max(8, images // 12), size=128, seed=0)
            with stage("Prepare", "shards and a manifest, with Ray Data"):
                prepare(scenes, data)
            with stage("Sweep", f"necks and schedules with Ray Tune, {trial_steps} steps a trial"):
                if (root / "sweep" / SWEEP_FILE).is_file():
                    trials = SweepConfig.load(root / "sweep")
                else:
                    space = SearchSpace.checked(
                        recipe=RECIPE,
                        set=length(trial_steps, validations=1),
                        vary={"neck": ["none", "mln"], "schedule": schedule or ["cosine"]},
                    )
                    trials = plan_sweep(space, data, root=root, name="sweep", tracking_uri=uri, experiment="demo")
                    trials.save()
                record = sweep(trials)
                decision = decide(record)
                print_configurations(record, decision)
            with stage("Train", f"the winner, {decision.winner}, {steps} steps on {workers} workers"):
                winner = override(best_run(trials, decision).recipe, length(steps, validations=3))
                config = plan_run(
                    winner, data, root=root, name="train", workers=workers, tracking_uri=uri, experiment="demo"
                )
                result = train(config, resume=resume)
            with stage("Register", "the best checkpoint in MLflow, and promote it to champion"):
                version = register_best(config, result, name=MODEL)
                if get_model(MODEL, tracking_uri=uri).aliases.get(CHAMPION) != version.number:
                    case = open_case(MODEL, version.number, tracking_uri=uri, data=data)
                    promote(judge(case, root=root, tracking_uri=uri), tracking_uri=uri)
            with stage("Evaluate", "the champion, fetched from the registry"):
                champion = open_model(fetch_model(f"models:/{MODEL}@champion", root=root, tracking_uri=uri))
                counts = evaluate_model(*champion, data, workers=workers)
            with stage("Predict", "the validation images, with Ray Data"):
                predict_folder(*champion, scenes / "images" / "validation", root / "predictions", workers=workers)

        assert version.run_id is not None
        before = metric_history(uri, version.run_id, "val/mIoU")[0][1]
        seconds = time.monotonic() - started
        table = Table("what", "outcome", title=f"The demo took {seconds:.0f} s", title_justify="left")
        table.add_row("trained", f"{winner.name}, {decision.winner}, {steps} steps")
        table.add_row("mIoU before training", f"{before:.2%}")
        table.add_row("mIoU of the champion", f"[bold]{counts.scores().miou:.2%}[/] on {len(counts)} validation images")
        table.add_row("champion", f"{MODEL} version {version.number}")
        table.add_row("its checkpoint", str(result.best))
        table.add_row("predictions to look at", str(root / "predictions" / "overlays"))
        table.add_row("runs and models", f"uv run vitrail ui --root {root}")
        console.print(table)


def claim(root: Path, *, replace: bool, resume: bool) -> None:
    """Make `root` the demo's; an earlier demo's folder is touched only as asked, any other never."""
    marker = root / MARKER
    if root.exists() and any(root.iterdir()):
        if not marker.is_file():
            raise UsageError(f"{root} holds something other than a demo; choose another --root")
        if not (replace or resume):
            raise UsageError(f"{root} holds an earlier demo; continue it with --resume or start over with --replace")
        if replace:
            shutil.rmtree(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        marker.write_text("Made by pipelines/demo.py; --replace deletes this folder.\n")
    except OSError as error:
        raise UsageError(f"cannot write {root}: {error.strerror}; choose another --root") from None


def length(steps: int, *, validations: int) -> list[str]:
    """What makes a recipe one of `steps` of eight images, warm-up in proportion, validated so many times."""
    changes = {
        "global_batch": 8,
        "total_steps": steps,
        "val_interval": -(-steps // validations),
        "schedule.warmup_steps": steps // 10,
    }
    return [f"{field}={value}" for field, value in changes.items()]


@contextmanager
def stage(name: str, what: str) -> Iterator[None]:
    """Announce a stage, and say how long it took."""
    console.print(f"[bold]{name}[/]: {what}")
    started = time.monotonic()
    yield
    console.print(f"[dim]  done in {time.monotonic() - started:.1f} s[/]")


if __name__ == "__main__":
    typer.run(main)
