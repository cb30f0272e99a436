"""Measure this machine: training crops, models, validation, and what Ray costs.

    uv run jobs/benchmark.py data
    uv run jobs/benchmark.py model --all --out jobs/results/model.json
    uv run jobs/benchmark.py model --all --peer-python PEER/bin/python     # mmsegmentation beside it, in the same run
    uv run jobs/benchmark.py report

What is compared runs in turn, in one run; figures are medians. Keep the machine otherwise idle.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vitrail.errors import UsageError, exit_codes

NANO = "upernet_vit-nano_mln_128x128_1k"
RESULTS = Path(__file__).parent / "results"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Out = Annotated[Path | None, typer.Option(help="Write the record here as JSON.")]
PeerPython = Annotated[Path | None, typer.Option(help="A Python that has mmsegmentation 1.2.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")]


@app.callback()
def benchmark() -> None:
    """Measurements of this machine."""


@app.command()
def data(
    source: Annotated[
        str | None, typer.Option(help="Folder of images and masks.", show_default="made-up photographs")
    ] = None,
    images: Annotated[int, typer.Option(min=16, help="Made-up photographs, 683x512.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions after one that warms up.")] = 7,
    ray_batches: Annotated[int, typer.Option(min=8, help="Batches of 16 timed of Ray Data's stream.")] = 256,
    peer_python: PeerPython = None,
    out: Out = None,
) -> None:
    """Decoding and augmentation: stages, the two streams, and mmsegmentation's pipeline."""
    with exit_codes(), tempfile.TemporaryDirectory() as scratch:
        from vitrail.benchmark.data import DataBenchmark, write_photographs
        from vitrail.cluster.prepare import prepare
        from vitrail.cluster.ray_data_stream import RayDataStream
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.config import TransformConfig
        from vitrail.data.order import StreamPlan
        from vitrail.data.shards import ShardReader

        if source is None:
            source = f"{scratch}/photographs"
            write_photographs(Path(source), images)
        prepare(source, f"{scratch}/data")
        transforms = TransformConfig()
        bench = DataBenchmark(ShardReader(f"{scratch}/data", "training"), transforms, repeats=repeats)
        results: dict[str, Any] = {"images": len(bench.reader)}
        results["in-worker reader, first batch (s)"] = {f"step {n:,}": bench.first_batch_s(n) for n in (0, 159_000)}
        results["stages (CPU ms per image)"] = bench.stages()
        results["streams"] = bench.streams(peer_python, Path(source))
        results["Ray Data stream, one task at a time"] = bench.ray_data(
            lambda: ray_cluster(num_cpus=1),
            lambda: RayDataStream(bench.reader, transforms, StreamPlan(seed=0, global_batch=16)),
            batches=ray_batches,
        )
        finish("data", results, out)


@app.command()
def prepare(
    sizes: Annotated[Path, typer.Argument(help="CSV with split, height and width of each image.")],
    scratch: Annotated[Path, typer.Option(help="Empty folder for images and shards; kept.")],
    out: Out = None,
) -> None:
    """Preparing made-up images of these sizes: time, whether it grows in proportion, and heap."""
    with exit_codes():
        from vitrail.benchmark.prepare import measure_prepare, read_sizes, write_data_set
        from vitrail.cluster.runtime import ray_cluster

        listed = read_sizes(sizes)
        write_data_set(scratch / "source", listed)
        with ray_cluster():
            results = measure_prepare(scratch / "source", scratch / "data", samples=len(listed))
        finish("prepare", results, out)


@app.command()
def model(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes' names.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All eleven published rows.")] = False,
    device: Device = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions after one that warms up.")] = 3,
    peer_python: PeerPython = None,
    out: Out = None,
) -> None:
    """Training and prediction of each recipe: speed, memory and use of the device, and mmsegmentation's."""
    with exit_codes():
        from vitrail.benchmark.model import measure_models
        from vitrail.benchmark.record import BenchmarkRecord
        from vitrail.benchmark.report import MODEL, print_record
        from vitrail.recipes import RECIPES, get_recipe

        chosen = [recipe for recipe in RECIPES.values() if recipe.published] if all_ else []
        chosen += [get_recipe(name) for name in recipes or []]
        if not chosen:
            raise UsageError("name recipes, or measure the published rows with --all")
        place = cast(Any, device_for(device))
        for results in measure_models(chosen, device=place, repeats=repeats, peer_python=peer_python, tell=typer.echo):
            record = BenchmarkRecord.of(MODEL, results)
            record.write(out)  # after each, since all together take an hour
        print_record(record)


@app.command()
def validation(
    data: Annotated[str, typer.Option(help="A data set made by pipelines/prepare.py.")],
    recipe: Annotated[str, typer.Argument(help="A recipe's name.")] = NANO,
    device: Device = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions after one that warms up.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="That decode ahead.")] = 1,
    out: Out = None,
) -> None:
    """Scoring the validation split: in batches against one image at a time."""
    with exit_codes():
        from vitrail.benchmark.validation import measure_validation
        from vitrail.data.shards import ShardReader
        from vitrail.recipes import get_recipe

        reader = ShardReader(data, "validation")
        results = measure_validation(
            reader, get_recipe(recipe), device=device_for(device), repeats=repeats, threads=threads
        )
        finish("validation", results, out)


@app.command()
def end_to_end(
    recipe: Annotated[str, typer.Option(help="A recipe's name.")] = NANO,
    data: Annotated[str | None, typer.Option(help="A prepared data set.", show_default="drawn scenes")] = None,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0)] = 0.0,
    steps: Annotated[int, typer.Option(min=20, help="Of each run and of each bare loop.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    out: Out = None,
) -> None:
    """What Ray costs: runs fed in both ways against a loop of the same steps without Ray."""
    with exit_codes(), tempfile.TemporaryDirectory() as scratch:
        from vitrail.benchmark.end_to_end import measure_end_to_end
        from vitrail.cluster.prepare import prepare
        from vitrail.data.scenes import draw_scenes
        from vitrail.recipes import get_recipe

        if data is None:
            draw_scenes(Path(scratch) / "scenes", train=400, val=8)
            prepare(f"{scratch}/scenes", f"{scratch}/data")
            data = f"{scratch}/data"
        results = measure_end_to_end(
            get_recipe(recipe),
            data,
            Path(scratch) / "runs",
            workers=workers,
            steps=steps,
            repeats=repeats,
            gpus_per_worker=gpus_per_worker,
        )
        finish("end-to-end", results, out)


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder of records.")] = RESULTS,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
) -> None:
    """The published rows, with what each machine that has a record made of them."""
    with exit_codes():
        from vitrail.benchmark.report import as_markdown, print_tables, published_tables

        tables = published_tables(results)
        print_tables(tables)
        if markdown is not None:
            markdown.write_text(as_markdown(tables))


def device_for(name: str | None) -> str:
    """The device that was asked for, or a GPU where there is one."""
    if name is None:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} must be cpu or cuda")
    return name


def finish(benchmark: str, results: dict[str, Any], out: Path | None) -> None:
    """Write the record and print it."""
    from vitrail.benchmark.record import BenchmarkRecord
    from vitrail.benchmark.report import print_record

    record = BenchmarkRecord.of(benchmark, results)
    record.write(out)
    print_record(record)


if __name__ == "__main__":
    app()
