"""`vitrail models promote`, `rollback`, `history`, `audit` and `compare`: which version is in use, and why."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vitrail import options
from vitrail.cli_models import Name, Root, TrackingUri, store_address
from vitrail.errors import UsageError, exit_codes
from vitrail.gate.limits import GateRules

_CHAMPION = "champion"
_RUNS = Path("runs")

Alias = Annotated[str, typer.Option("--alias", help="The alias to move or look at.")]
Data = Annotated[
    str | None, typer.Option(help="Judge on this prepared data set.", show_default="the one the version was trained on")
]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the history.")]


def promote_command(
    name: Name,
    version: Annotated[int, typer.Argument(help="The version that is to get the alias.")],
    alias: Alias = _CHAMPION,
    into: Annotated[
        str | None, typer.Option(help="Copy the version to this registered model, whose alias moves.")
    ] = None,
    data: Data = None,
    margin: Annotated[
        float | None, typer.Option(help="mIoU, as a fraction, to be better by; see --allow-equal.")
    ] = None,
    allow_equal: Annotated[
        bool, typer.Option("--allow-equal", help="Not worse by --margin (0.005) is enough, with 95 % confidence.")
    ] = False,
    max_class_drop: Annotated[float, typer.Option(help="IoU, as a fraction, that a class may lose.")] = 0.10,
    min_class_share: Annotated[float, typer.Option(help="Share of pixels from which on that holds.")] = 0.001,
    max_slowdown: Annotated[float, typer.Option(help="Times the champion's time per image.")] = 2.0,
    max_memory_growth: Annotated[float, typer.Option(help="Times the champion's memory.")] = 2.0,
    min_fps: Annotated[float | None, typer.Option(help="Images/s, one at a time, on this machine.")] = None,
    max_memory_gib: Annotated[float | None, typer.Option(help="GiB at the peak of predicting.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote against the gate; needs --reason.")] = False,
    reason: Reason = None,
    workers: options.Workers = 1,
    gpus_per_worker: options.GpusPerWorker = 0.0,
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
    address: options.Address = None,
) -> None:
    """Judge a version against the one that has the alias, on the same images, and give it the alias if it passes."""
    with exit_codes():
        rules = _checked_rules(
            margin=margin,
            allow_equal=allow_equal,
            max_class_drop=max_class_drop,
            min_class_share=min_class_share,
            max_slowdown=max_slowdown,
            max_memory_growth=max_memory_growth,
            min_images_per_s=min_fps,
            max_memory_gib=max_memory_gib,
        )
        uri = store_address(tracking_uri, root)

        from vitrail.cluster.judge import judge, open_case
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.tracking.promotion import check_reason, promote

        check_reason(force=force, reason=reason)
        case = open_case(name, version, alias, tracking_uri=uri, data=data, into=into)
        with ray_cluster(address):
            verdict = judge(
                case, root=root, tracking_uri=uri, rules=rules, workers=workers, gpus_per_worker=gpus_per_worker
            )
        table = Table("rule", "passed", "numbers")
        for result in verdict.results:
            table.add_row(result.rule, "yes" if result.passed else "NO", result.detail)
        Console().print(table)
        move = promote(verdict, alias, tracking_uri=uri, into=into, force=force, reason=reason)
        instead = "" if move.from_version is None else f" instead of version {move.from_version}"
        forced = "" if verdict.passed else ", against the gate"
        print(f"{into or name} version {move.to_version} is now {alias}{instead}{forced}")


def rollback_command(
    name: Name, alias: Alias = _CHAMPION, reason: Reason = None, tracking_uri: TrackingUri = None, root: Root = _RUNS
) -> None:
    """Give an alias back to the version that had it before."""
    with exit_codes():
        from vitrail.tracking.promotion import rollback

        move = rollback(name, alias, tracking_uri=store_address(tracking_uri, root), reason=reason)
        print(f"{name} version {move.to_version} is {alias} again, instead of version {move.from_version}")


def history_command(name: Name, alias: Alias = _CHAMPION, tracking_uri: TrackingUri = None, root: Root = _RUNS) -> None:
    """Show who moved an alias, when, from where to where, and why."""
    with exit_codes():
        from vitrail.tracking.promotion import history

        moves = history(name, alias, tracking_uri=store_address(tracking_uri, root))
        table = Table(
            "when (UTC)", "who", "what", "from", "to", "why", title=f"{alias} of {name}", title_justify="left"
        )
        for move in moves:
            before = "-" if move.from_version is None else str(move.from_version)
            table.add_row(move.at[:19], move.by, move.action, before, str(move.to_version), move.reason or "")
        Console().print(table)


def audit_command(
    names: Annotated[list[str] | None, typer.Argument(help="Registered models.", show_default="all")] = None,
    files: Annotated[bool, typer.Option(help="Fetch every file and compare it with its checksum.")] = True,
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
) -> None:
    """List aliased versions without a valid verdict, or whose files, run or data are gone; exit code 1 if any."""
    with exit_codes():
        from vitrail.tracking.audit import audit

        findings = audit(tracking_uri=store_address(tracking_uri, root), names=names or None, files=files)
        if not findings:
            print("every aliased version has a valid verdict, its files and its origins")
            return
        table = Table("model", "alias", "version", "what", "finding")
        for finding in findings:
            number = "-" if finding.version is None else str(finding.version)
            table.add_row(finding.model, finding.alias, number, finding.kind, finding.detail)
        Console().print(table)
        raise SystemExit(1)


def compare_command(
    first: Annotated[str, typer.Argument(help="models:/NAME@alias, models:/NAME/VERSION, a checkpoint or a file.")],
    second: Annotated[str, typer.Argument(help="What to compare it with.")],
    data: options.Data,
    split: str = "validation",
    out: Annotated[str, typer.Option(help="Folder, s3:// or gs:// for the pictures.")] = "comparison",
    pictures: Annotated[int, typer.Option(min=0, help="Images to draw, those the two disagree on most.")] = 12,
    workers: options.Workers = 1,
    gpus_per_worker: options.GpusPerWorker = 0.0,
    tracking_uri: TrackingUri = None,
    root: Root = _RUNS,
    address: options.Address = None,
) -> None:
    """Score two models on the same images: class by class with 95 % intervals, and pictures of where they disagree."""
    with exit_codes():
        from vitrail.cluster.compare import compare_models, print_comparison, write_disputed
        from vitrail.cluster.runtime import ray_cluster
        from vitrail.evaluation.trained import open_model
        from vitrail.tracking.fetch import fetch_model
        from vitrail.tracking.store import default_tracking_uri

        uri = tracking_uri or default_tracking_uri(root)
        one, other = (open_model(fetch_model(model, root=root, tracking_uri=uri)) for model in (first, second))
        with ray_cluster(address):
            comparison = compare_models(one, other, data, split=split, workers=workers, gpus_per_worker=gpus_per_worker)
        print_comparison(comparison, first, second)
        if pictures:
            written = write_disputed(comparison, one, other, data, out, split=split, count=pictures)
            print(f"the {len(written)} images on which they disagree most are drawn in {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "promote": promote_command,
    "rollback": rollback_command,
    "history": history_command,
    "audit": audit_command,
    "compare": compare_command,
}
"""Commands of `vitrail models`, by their names."""


def _checked_rules(**values: float | bool | None) -> GateRules:
    try:
        return GateRules(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"{error}") from None
