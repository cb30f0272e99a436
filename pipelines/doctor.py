"""Look a data set over before it is trained on: everything is read once, and what is wrong is listed and shown.

    uv run pipelines/doctor.py SRC                      # images and masks in ADEChallengeData2016's layout
    uv run pipelines/doctor.py DST --augmented 12       # what prepare.py wrote, with crops as the model sees them

Writes report.json, report.html and, with --augmented, preview.png to --out. Errors make the exit code 1.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from vitrail import options
from vitrail.errors import UsageError, exit_codes

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.data.doctor.diagnosis import Diagnosis


def main(
    place: Annotated[str, typer.Argument(help="Source folder or prepared data set; also s3:// or gs://.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder, s3:// or gs:// to write to.", show_default="doctor/NAME, below VITRAIL_RUNS where that is set"
        ),
    ] = None,
    augmented: Annotated[int, typer.Option(min=0, help="Training crops to draw on a contact sheet.")] = 0,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose crops to draw.", show_default="the published 512")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training run whose crops to draw.")] = 0,
    address: options.Address = None,
) -> None:
    """Report what would harm training."""
    with exit_codes():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from vitrail.cluster.doctor import UnsoundDataError, examine
        from vitrail.config import TransformConfig
        from vitrail.data.doctor.examples import open_illustrator
        from vitrail.data.doctor.page import verdict, write_report
        from vitrail.data.storage import Folder
        from vitrail.recipes import get_recipe

        folder, console = Folder.at(place), Console()
        target = Folder.at(out or options.below_runs("", "doctor", folder.name))
        if folder.contains(target):
            raise UsageError(f"{target} lies in {folder}; name a folder outside it with --out")
        transforms = get_recipe(recipe).transforms if recipe else TransformConfig()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("samples", total=None)
            diagnosis = examine(
                folder, address=address, on_progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
        sheet = None
        if augmented:
            from vitrail.data.doctor.preview import draw_first_crops

            sheet = draw_first_crops(folder, transforms, count=augmented, seed=seed)
        page = write_report(diagnosis, target, picture=open_illustrator(folder).picture, sheet=sheet)
        if diagnosis.groups:
            console.print(_table(diagnosis))
        if diagnosis.count("error"):
            raise UnsoundDataError.of(diagnosis, page)
        console.print(f"{verdict(diagnosis)} {page}", soft_wrap=True, highlight=False, markup=False)


def _table(diagnosis: "Diagnosis") -> "Table":
    """A row per kind of finding, with one example."""
    from rich.table import Table
    from rich.text import Text

    colours = {"error": "red", "warning": "yellow", "note": "blue"}
    table = Table("", "count", "finding", "for example", title=Text(diagnosis.subject.name))
    for group in diagnosis.groups:
        severity = Text(group.kind.severity, style=colours[group.kind.severity])
        example = Text(str(group.listed[0]), overflow="ellipsis", no_wrap=True)
        table.add_row(severity, f"{group.count:,}", group.kind.name.replace("_", " "), example)
    return table


if __name__ == "__main__":
    typer.run(main)
