"""Command-line options that several jobs and pipelines have, each with one meaning and one help text."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from vitrail.config import Precision as _Precision
from vitrail.errors import UsageError as _UsageError
from vitrail.errors import exit_codes as _exit_codes
from vitrail.tracking.address import without_password as _without_password


def tracking_address(given: str | None) -> str | None:
    """For options that take MLflow's address: the address without a password, with which MLflow's client signs in."""
    with _exit_codes():
        return _without_password(given)


def run_folder(given: Path) -> Path:
    """For the folder of runs, which has to be on a disk: a URI would become a folder of that name."""
    with _exit_codes():
        if re.match(r"[a-z][a-z0-9+]+:/", str(given), re.IGNORECASE):
            scheme, _, rest = str(given).partition(":/")
            raise _UsageError(
                f"{scheme}://{rest} is in an object store; the folder of runs holds locks, a database, and what waits "
                "to be sent to MLflow, which need a disk; name a folder here, and with --checkpoints the store for "
                "what runs leave"
            )
    return given


def below_runs(otherwise: str, *names: str) -> Path:
    """Where to write when nobody has said: below `VITRAIL_RUNS` where that is set, as it is for jobs, whose own folder
    is deleted; else below `otherwise`."""
    return Path(os.environ.get("VITRAIL_RUNS") or otherwise, *names)


CONTINUE_VARIABLE = "VITRAIL_CONTINUE"
"""Set for a job that begins once more, after it made room or its head was lost: what was begun is continued."""


def is_continued() -> bool:
    """Whether this is a job that begins once more."""
    return bool(os.environ.get(CONTINUE_VARIABLE))


Data = Annotated[str, typer.Option(help="A data set made by pipelines/prepare.py: folder, s3:// or gs://.")]
Root = Annotated[
    Path,
    typer.Option(envvar="VITRAIL_RUNS", callback=run_folder, help="Folder of runs, and of the local MLflow store."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="path.to.field=value of the recipe.")]
Workers = Annotated[int, typer.Option(min=1, help="Workers; of each trial, in a sweep.")]
GpusPerWorker = Annotated[float, typer.Option(min=0)]
Resume = Annotated[bool, typer.Option(envvar=CONTINUE_VARIABLE, help="Continue what was begun under this name.")]
Register = Annotated[str | None, typer.Option(help="Registered model's name.", show_default="the data set's")]
TrackingUri = Annotated[str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", callback=tracking_address)]
Address = Annotated[str | None, typer.Option(help="Ray cluster.", show_default="RAY_ADDRESS, or this machine")]

Precision = Annotated[_Precision, typer.Option(help="auto: bf16 on GPUs, fp32 on CPUs.")]
MicroBatch = Annotated[str | None, typer.Option(help="Samples at once: a number, or `auto`, what fits.")]
Compile = Annotated[bool, typer.Option("--compile", help="Fuse the network's kernels with torch.compile.")]
CheckpointActivations = Annotated[bool, typer.Option(help="Compute activations twice, to save memory.")]
