"""`vitrail models`: registered models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from vitrail.cli_export import export
from vitrail.errors import UsageError, exit_codes
from vitrail.options import run_folder, tracking_address
from vitrail.tracking.promotion import CHAMPION, VERDICT_TAG
from vitrail.tracking.registry import Model, Version, get_model, list_models, show
from vitrail.tracking.store import default_tracking_uri

models_app = typer.Typer(no_args_is_help=True, add_completion=False)
models_app.command("export")(export)

TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        callback=tracking_address,
        help="MLflow's address.",
        show_default="the store in ROOT",
    ),
]
Root = Annotated[Path, typer.Option("--root", callback=run_folder, help="Folder of runs, which holds the local store.")]
Name = Annotated[str, typer.Argument(help="A registered model.")]

_RUNS = Path("runs")


@models_app.command("list")
def list_command(tracking_uri: TrackingUri = None, root: Root = _RUNS) -> None:
    """List the registered models with their champions."""
    with exit_codes():
        models = list_models(tracking_uri=store_address(tracking_uri, root))
        table = Table("model", "versions", "champion", "mIoU", "recipe", "other aliases")
        for model in models:
            table.add_row(*_summary(model))
        _console().print(table if models else "no registered models; jobs/train.py registers the best checkpoint")


@models_app.command("show")
def show_command(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="A number or an alias: prints its model card.")] = None,
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
) -> None:
    """Show a model's versions, or one version's model card."""
    with exit_codes():
        uri = store_address(tracking_uri, root)
        if version is None:
            _console().print(_versions(get_model(name, tracking_uri=uri)))
            return
        found = show(name, tracking_uri=uri, version=version)
        console = _console()
        console.print(f"[bold]{found.uri}[/]  {_at(found.aliases)}  {found.created:%Y-%m-%d %H:%M} UTC")
        console.print(Markdown(found.description))


def store_address(tracking_uri: str | None, root: Path) -> str:
    """The server that was named, or the local store, which must exist."""
    return tracking_uri or existing_store(root)


def existing_store(root: Path) -> str:
    """The address of the store in `root`; looking at models must not create an empty store in the wrong folder."""
    if not (root / "mlflow.db").exists():
        raise UsageError(
            f"there is no store in {root}: {root / 'mlflow.db'} does not exist; name the folder of runs with --root, "
            "or a server with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return default_tracking_uri(root)


def _console() -> Console:
    return Console()


def _summary(model: Model) -> tuple[str, ...]:
    champion = model.aliases.get(CHAMPION)
    by_number = {version.number: version for version in model.versions}
    tags = by_number[champion].tags if champion in by_number else {}
    others = ", ".join(f"{alias} = {number}" for alias, number in model.aliases.items() if alias != CHAMPION)
    shown = "-" if champion is None else str(champion)
    return model.name, str(len(model.versions)), shown, _miou(tags), tags.get("vitrail.recipe", "-"), others


def _versions(model: Model) -> Table:
    table = Table(
        "version",
        "aliases",
        "mIoU",
        "recipe",
        "step",
        "data",
        "gate",
        "created (UTC)",
        title=model.name,
        title_justify="left",
    )
    for version in model.versions:
        table.add_row(*_row(version))
    return table


def _row(version: Version) -> tuple[str, ...]:
    tags = version.tags
    return (
        str(version.number),
        _at(version.aliases),
        _miou(tags),
        tags.get("vitrail.recipe", "-"),
        tags.get("vitrail.step", "-"),
        tags.get("vitrail.data", "-"),
        tags.get(VERDICT_TAG, "-"),
        f"{version.created:%Y-%m-%d %H:%M}",
    )


def _miou(tags: dict[str, str]) -> str:
    return f"{float(tags['vitrail.mIoU']):.2%}" if "vitrail.mIoU" in tags else "-"


def _at(aliases: tuple[str, ...]) -> str:
    return " ".join(f"@{alias}" for alias in aliases)
