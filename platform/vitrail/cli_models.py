"""`vitrail models`: registered models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from vitrail.errors import UsageError, exit_codes
from vitrail.tracking.gate import GateRules, Verdict
from vitrail.tracking.promotion import CHAMPION, VERDICT_TAG, history, promote, rollback
from vitrail.tracking.registration import copy_version
from vitrail.tracking.registry import Model, Version, get_model, list_models, show
from vitrail.tracking.store import default_tracking_uri

models_app = typer.Typer(no_args_is_help=True, add_completion=False)

TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow's address [default: the store in ROOT]."),
]
Root = Annotated[Path, typer.Option("--root", help="Folder of runs, which holds the local store.")]
Name = Annotated[str, typer.Argument(help="A registered model.")]
Alias = Annotated[str, typer.Option("--alias", help="The alias to move or look at.")]

_RUNS = Path("runs")


@models_app.command("list")
def list_command(tracking_uri: TrackingUri = None, root: Root = _RUNS) -> None:
    """List the registered models with their champions."""
    with exit_codes():
        models = list_models(tracking_uri=_store(tracking_uri, root))
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
        uri = _store(tracking_uri, root)
        if version is None:
            _console().print(_versions(get_model(name, tracking_uri=uri)))
            return
        found = show(name, tracking_uri=uri, version=version)
        console = _console()
        console.print(f"[bold]{found.uri}[/]  {_at(found.aliases)}  {found.created:%Y-%m-%d %H:%M} UTC")
        console.print(Markdown(found.description))


@models_app.command("promote")
def promote_command(
    name: Name,
    version: Annotated[int, typer.Argument(help="The version that is to get the alias.")],
    alias: Alias = CHAMPION,
    min_gain: Annotated[float, typer.Option(help="mIoU, as a fraction, to be above the champion.")] = 0.0,
    allow_equal: Annotated[bool, typer.Option(help="Let exactly that gain pass.")] = False,
    force: Annotated[bool, typer.Option(help="Promote against the gate; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the history.")] = None,
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
) -> None:
    """Give an alias to a version that passes the gate."""
    with exit_codes():
        if not 0 <= min_gain < 1:
            raise UsageError(f"--min-gain {min_gain} must be a fraction of at least 0 and below 1")
        promotion = promote(
            name,
            version,
            alias,
            tracking_uri=_store(tracking_uri, root),
            rules=GateRules(min_gain=min_gain, allow_equal=allow_equal),
            force=force,
            reason=reason,
        )
        _console().print(_rules(promotion.verdict))
        before = promotion.move.from_version
        instead = "" if before is None else f" instead of version {before}"
        forced = "" if promotion.verdict.passed else ", against the gate"
        _console().print(f"{name} version {version} is now {alias}{instead}{forced}")


@models_app.command("copy")
def copy_command(
    name: Name,
    version: Annotated[str, typer.Argument(help="A number or an alias.")],
    to: Annotated[str, typer.Argument(help="The registered model that is to have it too.")],
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
) -> None:
    """Copy a version to another registered model, such as NAME-production, to be promoted there."""
    with exit_codes():
        uri = _store(tracking_uri, root)
        copied = copy_version(show(name, tracking_uri=uri, version=version), to, tracking_uri=uri)
        _console().print(f"{name} version {version} is {copied.uri}")


@models_app.command("rollback")
def rollback_command(
    name: Name,
    alias: Alias = CHAMPION,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the history.")] = None,
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
) -> None:
    """Give an alias back to the version that had it before."""
    with exit_codes():
        move = rollback(name, alias, tracking_uri=_store(tracking_uri, root), reason=reason)
        _console().print(f"{name} version {move.to_version} is {alias} again, instead of version {move.from_version}")


@models_app.command("history")
def history_command(name: Name, alias: Alias = CHAMPION, tracking_uri: TrackingUri = None, root: Root = _RUNS) -> None:
    """Show who moved an alias, when, from where to where, and why."""
    with exit_codes():
        uri = _store(tracking_uri, root)
        table = Table(
            "when (UTC)", "who", "what", "from", "to", "why", title=f"{alias} of {name}", title_justify="left"
        )
        for move in history(name, alias, tracking_uri=uri):
            before = "-" if move.from_version is None else str(move.from_version)
            table.add_row(move.at[:19], move.by, move.action, before, str(move.to_version), move.reason or "")
        _console().print(table)


def _store(tracking_uri: str | None, root: Path) -> str:
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


def _rules(verdict: Verdict) -> Table:
    table = Table("rule", "passed", "numbers")
    for result in verdict.results:
        table.add_row(result.rule, "yes" if result.passed else "NO", result.detail)
    return table


def _miou(tags: dict[str, str]) -> str:
    return f"{float(tags['vitrail.mIoU']):.2%}" if "vitrail.mIoU" in tags else "-"


def _at(aliases: tuple[str, ...]) -> str:
    return " ".join(f"@{alias}" for alias in aliases)
