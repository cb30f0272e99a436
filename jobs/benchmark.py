"""Measure this machine: how fast training crops are made, stage by stage.

    uv run jobs/benchmark.py data
    uv run jobs/benchmark.py data --peer-python PEER/bin/python     # mmsegmentation beside it, in the same run

What is compared runs in turn, in one run; figures are medians. Keep the machine otherwise idle.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.errors import exit_codes

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def benchmark() -> None:
    """Measurements of this machine."""


@app.command()
def data(
    source: Annotated[
        str | None, typer.Option(help="Folder of images and masks [default: made-up photographs].")
    ] = None,
    images: Annotated[int, typer.Option(min=16, help="Made-up photographs, 683x512.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions after one that warms up.")] = 7,
    ray_batches: Annotated[int, typer.Option(min=8, help="Batches of 16 timed of Ray Data's stream.")] = 256,
    peer_python: Annotated[Path | None, typer.Option(help="A Python that has mmsegmentation 1.2.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the record here as JSON.")] = None,
) -> None:
    """Decoding and augmentation: stages, the two streams, and mmsegmentation's pipeline."""
    with exit_codes(), tempfile.TemporaryDirectory() as scratch:
        from vitrail.benchmark.data import DataBenchmark, write_photographs
        from vitrail.benchmark.record import BenchmarkRecord
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
        finish(BenchmarkRecord.of("data", results), out)


@app.command()
def prepare(
    sizes: Annotated[Path, typer.Argument(help="CSV with split, height and width of each image.")],
    scratch: Annotated[Path, typer.Option(help="Empty folder for images and shards; kept.")],
    out: Annotated[Path | None, typer.Option(help="Write the record here as JSON.")] = None,
) -> None:
    """Preparing made-up images of these sizes: time, whether it grows in proportion, and heap."""
    with exit_codes():
        from vitrail.benchmark.prepare import measure_prepare, read_sizes, write_data_set
        from vitrail.benchmark.record import BenchmarkRecord
        from vitrail.cluster.runtime import ray_cluster

        listed = read_sizes(sizes)
        write_data_set(scratch / "source", listed)
        with ray_cluster():
            results = measure_prepare(scratch / "source", scratch / "data", samples=len(listed))
        finish(BenchmarkRecord.of("prepare", results), out)


def finish(record: Any, out: Path | None) -> None:
    """Print a record, every figure in a row of its own, and write it."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(record.model_dump_json(indent=1) + "\n")
    from rich.console import Console
    from rich.table import Table

    machine = record.machine
    table = Table("what", "figure", title=f"{record.benchmark}: {machine['cpu']}, {machine['cores']} cores")
    for name, value in record.results.items():
        if not isinstance(value, dict):
            table.add_row(name, _figure(value))
            continue
        table.add_section()
        table.add_row(f"[bold]{name}[/]", "")
        for part, figure in value.items():
            table.add_row(f"  {part}", _figure(figure))
    Console().print(table)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app()
