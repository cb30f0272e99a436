"""`vitrail top`: a cluster on one screen."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from vitrail.cli_jobs import Address
from vitrail.errors import exit_codes

if TYPE_CHECKING:
    from vitrail.cluster.cluster_view import ClusterWatch

_ENDED_SHOWN = 10


def top(
    interval: Annotated[float, typer.Option(min=1.0, help="Seconds from one reading to the next.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once, as where there is no terminal.")] = False,
    address: Address = None,
) -> None:
    """Show a cluster's jobs, machines and GPUs, and how fast they train, until Ctrl-C.

    Everything is read through the dashboard's address. For Grafana there is vitrail/cluster/grafana_dashboard.json;
    README.md, "Watching", says how to load it.
    """
    with exit_codes():
        from vitrail.cluster.cluster_view import ClusterWatch
        from vitrail.cluster.job_server import job_address

        watch = ClusterWatch(job_address(address))
        console = Console()
        if once or not console.is_terminal:
            _print(watch, console)
        else:
            _show(watch, console, interval)


def _print(watch: "ClusterWatch", console: Console) -> None:
    from vitrail.cluster.top_screen import screen

    view = watch.read(ended=_ENDED_SHOWN)
    console.print(screen(view, watch.address, width=console.width))


def _show(watch: "ClusterWatch", console: Console, interval_s: float) -> None:
    """Read and draw until Ctrl-C. A cluster that answered once may be away for a while: the last reading stays."""
    from vitrail.cluster.job_server import ClusterUnreachableError
    from vitrail.cluster.top_screen import screen

    view, read_at, away = watch.read(ended=_ENDED_SHOWN), time.monotonic(), None
    with Live(console=console, screen=True, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            missing = Text(f"no answer for {time.monotonic() - read_at:.0f} s: {away}", style="red")
            shown = screen(view, watch.address, height=console.height - 1, width=console.width)
            live.update(Group(missing, shown) if away else shown, refresh=True)
            time.sleep(interval_s)
            try:
                view, read_at, away = watch.read(ended=_ENDED_SHOWN), time.monotonic(), None
            except ClusterUnreachableError as error:
                away = error.reason
