"""`vitrail runs`: what is in a folder of runs."""

from pathlib import Path
from typing import Annotated

import typer

from vitrail.errors import exit_codes

runs_app = typer.Typer(no_args_is_help=True)


@runs_app.callback()
def runs() -> None:
    """Training runs of a folder."""


@runs_app.command("reconcile")
def reconcile(root: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs")) -> None:
    """Mark runs in MLflow that seem to be running, but whose driver is dead."""
    with exit_codes():
        from vitrail.cluster.reconcile import reconcile

        found = reconcile(root)
        for run in found:
            kept = "" if run.delivered else " (MLflow does not answer; sent when the run is continued)"
            print(f"{run.name}: {run.status}{kept}")
        print(f"{len(found)} runs were left running")
