"""The `vitrail` command: recipes, weights, models, runs, jobs on a cluster, and MLflow's server and pages.

Training and sweeps are job scripts under `jobs/`, data programs are under `pipelines/`: they are run by path, here or
on a cluster.
"""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vitrail import __version__
from vitrail.cli_jobs import JOB_COMMANDS
from vitrail.cli_models import models_app
from vitrail.cli_promotion import COMMANDS
from vitrail.cli_runs import runs_app
from vitrail.cli_server import server_app, ui
from vitrail.cli_top import top
from vitrail.cli_weights import weights_app
from vitrail.errors import exit_codes
from vitrail.overrides import override
from vitrail.recipes import RECIPES, get_recipe

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, track and promote segmentation models.")
app.add_typer(models_app, name="models", help="Registered models: browse, promote, roll back.")
app.add_typer(weights_app, name="weights", help="Weights of mmsegmentation, timm and safetensors, in and out.")
app.add_typer(runs_app, name="runs", help="Training runs of a folder.")
app.add_typer(server_app, name="server", help="MLflow's server, for one person or for several.")
app.command("ui")(ui)
app.command("top")(top)
for _name, _command in JOB_COMMANDS.items():
    # What follows the script is the script's own.
    app.command(_name, context_settings={"allow_interspersed_args": _name != "submit"})(_command)
for _name, _command in COMMANDS.items():
    models_app.command(_name)(_command)


@app.command("recipes")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe whole, as JSON.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="path.to.field=value to apply first.")] = None,
) -> None:
    """List the recipes with their published figures, or print one."""
    with exit_codes():
        if name is not None:
            print(override(get_recipe(name), set_ or []).model_dump_json(indent=2))
            return
        # Without lines the names stand whole in 80 columns.
        table = Table("recipe", "mIoU", "ms+flip", "GB", "fps", box=None, title="published figures of mmsegmentation")
        table.columns[0].no_wrap = True
        for recipe in RECIPES.values():
            row = recipe.published
            figures = (row.miou, row.miou_ms_flip, row.memory_gb, row.fps) if row else ("", "", "", "")
            table.add_row(recipe.name, *map(str, figures))
        Console().print(table)


@app.command("version")
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point of the `vitrail` command."""
    app()
