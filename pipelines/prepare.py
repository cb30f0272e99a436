"""Prepare a data set for training: ADEChallengeData2016's layout in, checked shards and a manifest out.

    uv run pipelines/prepare.py SRC DST

SRC holds images/{training,validation}/*.jpg, annotations/{training,validation}/*.png and, unless its classes are
ADE20K's, classes.csv (index,name[,red,green,blue]). Run it again after an interruption and it goes on where it was.
"""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitrail import options
from vitrail.cluster.prepare import DEFAULT_SHARD_SIZE_BYTES, OnError, PrepareProgress, prepare
from vitrail.data.layout import read_classes
from vitrail.data.manifest import Manifest
from vitrail.errors import exit_codes

_FAULTS_SHOWN = 10


def main(
    src: Annotated[str, typer.Argument(help="Folder, s3:// or gs:// with images/ and annotations/.")],
    dst: Annotated[str, typer.Argument(help="Folder, s3:// or gs:// to write the data set to.")],
    on_error: Annotated[OnError, typer.Option(help="What to do when samples are at fault.")] = "stop",
    shard_size_mb: Annotated[int, typer.Option(min=1, help="Source bytes per shard.")] = DEFAULT_SHARD_SIZE_BYTES >> 20,
    overwrite: Annotated[bool, typer.Option(help="Replace another data set in DST.")] = False,
    address: options.Address = None,
) -> None:
    """Write shards and a manifest of SRC to DST."""
    console, begin = Console(), time.monotonic()
    with exit_codes():
        with _bar(console) as bar:
            task = bar.add_task("samples", total=None)

            def show(progress: PrepareProgress) -> None:
                bar.update(task, completed=progress.samples_done, total=progress.samples)

            manifest = prepare(
                src,
                dst,
                on_error=on_error,
                shard_size_bytes=shard_size_mb << 20,
                overwrite=overwrite,
                address=address,
                on_progress=show,
            )
        _report(console, manifest, src, dst, seconds=time.monotonic() - begin)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _report(console: Console, manifest: Manifest, src: str, dst: str, *, seconds: float) -> None:
    table = Table(title=f"{manifest.name}: {manifest.num_classes} classes ({read_classes(src).source})")
    for heading in ("split", "images", "shards", "MB", "classes seen", "unlabelled pixels"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in manifest.splits.items():
        size_mb = sum(shard.size_bytes for shard in split.shards) / 1e6
        seen, labelled = sum(count > 0 for count in split.class_pixels), sum(split.class_pixels)
        unlabelled = split.ignored_pixels / max(1, labelled + split.ignored_pixels)
        row = (f"{split.num_samples:,}", len(split.shards), f"{size_mb:,.1f}", seen, f"{unlabelled:.1%}")
        table.add_row(name, *map(str, row))
    console.print(table)
    for fault in manifest.faults[:_FAULTS_SHOWN]:
        console.print(f"left out: {fault}", style="yellow", soft_wrap=True, highlight=False)
    if len(manifest.faults) > _FAULTS_SHOWN:
        more = len(manifest.faults) - _FAULTS_SHOWN
        console.print(f"left out: {more} more, listed in {dst}/manifest.json", style="yellow", soft_wrap=True)
    console.print(f"{dst} is ready: fingerprint {manifest.fingerprint}, {seconds:.1f} s", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
