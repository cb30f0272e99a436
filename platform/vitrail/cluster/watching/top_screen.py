"""What `vitrail top` shows: a line for the whole cluster, a table of jobs and one of machines, cut to the screen."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vitrail.cluster.watching.job_progress import JobProgress
from vitrail.cluster.watching.view import ClusterView, Gpu, MachineUse, Use, WatchedJob
from vitrail.words import duration

T = TypeVar("T")

WIDE = 110
"""From so many columns on there is room for all that is known."""
_GIB = 2**30
_COLOURS = {
    **dict.fromkeys(("running", "training"), "green"),
    **dict.fromkeys(("pending", "queued", "yielding", "stopped"), "yellow"),
    "failed": "red",
}
_LINES_AROUND = 7
"""Of the screen: the line of the whole, two headings, two lines between, and two that say what was left out."""
_FEWEST_JOBS = 4
_BARS = "▁▂▃▄▅▆▇█"
_SILENT = JobProgress(unit="steps", done=0, total=0, phase="")
_GIVE_WAY = ("job", "owner", "machine", "GPU")
"""Columns of names, which are cut where the screen is narrow."""


def screen(view: ClusterView, address: str, *, width: int, height: int | None = None) -> RenderableType:
    """The view for a screen of so many columns, cut to `height` lines if given."""
    wide = width >= WIDE
    jobs, machines = _shares(height, len(view.jobs), len(view.machines))
    parts: list[RenderableType] = [_summary(view, address), ""]
    parts += [_job_table(view.jobs[:jobs], wide=wide) if view.jobs else Text("no jobs", style="dim")]
    parts += _and_more(len(view.jobs) - jobs + view.left_out, "job", "; `vitrail list` has all")
    table = _machine_table(view.machines[:machines], wide=wide)
    # A head that has just been started does not know of itself as a machine for some seconds.
    parts += ["", table if view.machines else Text("no machines yet", style="dim")]
    parts += _and_more(len(view.machines) - machines, "machine")
    return Group(*parts)


def _shares(height: int | None, jobs: int, machines: int) -> tuple[int, int]:
    """Lines for each table: where there are too few for all, jobs have two thirds of them or more."""
    if height is None:
        return jobs, machines
    room = max(0, height - _LINES_AROUND)
    shown = min(jobs, max(room - machines, room * 2 // 3, _FEWEST_JOBS))
    return shown, min(machines, max(0, room - shown))


def _summary(view: ClusterView, address: str) -> Text:
    running = sum(watched.job.at_work for watched in view.jobs)
    waiting = sum(watched.job.live for watched in view.jobs) - running
    cpus, gpus = _total(machine.cpus for machine in view.machines), _total(machine.gpus for machine in view.machines)
    parts = [f"{running} running, {waiting} waiting", f"CPUs {_of(cpus)}"]
    parts += [f"GPUs {_of(gpus)}"] if gpus.total else []
    line = "   ".join([*parts, time.strftime("%H:%M:%S")])
    rate = (f"{view.images_per_s:.1f} images/s", "bold")
    return Text.assemble(rate, "   ", line, "   ", (address, "dim"), no_wrap=True, overflow="ellipsis")


def _job_table(jobs: Iterable[WatchedJob], *, wide: bool) -> Table:
    further = [">left", ">workers"] if wide else []
    table = _table("job", "state", "owner", ">time", ">step", ">img/s", ">wait", ">mIoU", *further, wide=wide)
    for watched in jobs:
        job, progress = watched.job, watched.progress
        rates = progress if progress and watched.trains else _SILENT
        state = _state(watched)
        known = [
            _shown(rates.images_per_s, "{:.1f}".format),
            _shown(rates.data_wait_share, "{:.0%}".format),
            _shown((progress or _SILENT).miou, "{:.1%}".format),
            _shown(rates.seconds_left, duration),
            str(watched.workers or ""),
        ]
        table.add_row(
            _cut(job.name),
            Text(state, style=_COLOURS.get(state, "")),
            _cut(job.owner),
            duration(job.seconds),
            _step(watched, wide=wide),
            *(known if wide else known[:3]),
        )
    return table


def _state(watched: WatchedJob) -> str:
    """Ray's word, or for a job that runs, what its workers do."""
    if watched.job.status != "RUNNING":
        return watched.job.status.lower()
    if watched.progress is None or watched.progress.unit == "trials":
        return "running"
    if watched.workers == 0:
        return "starting"
    return "validating" if watched.progress.phase == "validating" else "training"


def _step(watched: WatchedJob, *, wide: bool) -> str:
    progress = watched.progress
    if progress is None:
        return ""
    done, total = (str(count) if wide else _short(count) for count in (progress.done, progress.total))
    return f"{done}/{total}" + (" trials" if progress.unit == "trials" else "")


def _machine_table(machines: Iterable[MachineUse], *, wide: bool) -> Table:
    columns = [">CPUs", ">busy", ">memory GiB", ">objects", ">GPUs", "GPUs busy", ">GPU GiB"]
    table = _table("machine", *columns, *(["GPU", ">workers"] if wide else []), wide=wide)
    for machine in machines:
        gpus = machine.devices
        further: list[RenderableType] = [_cut(gpus[0].name if gpus else ""), str(machine.workers or "")]
        table.add_row(
            _cut(f"{machine.name} (head)" if machine.is_head else machine.name),
            _of(machine.cpus),
            _shown(machine.cpu_percent, "{:.0f}%".format),
            _shown(machine.memory_bytes, _gib),
            _gib(machine.object_store_bytes),
            _of(machine.gpus) if machine.gpus.total else "",
            _busy(gpus),
            _gpu_memory(gpus) if gpus else "",
            *(further if wide else []),
        )
    return table


def _busy(gpus: tuple[Gpu, ...]) -> str:
    """A bar for each GPU that says how busy it is, and their mean."""
    percents = [gpu.busy_percent for gpu in gpus if gpu.busy_percent is not None]
    if not percents:
        return ""
    bars = "".join(_BARS[min(int(percent / 100 * len(_BARS)), len(_BARS) - 1)] for percent in percents)
    return f"{bars} {sum(percents) / len(percents):.0f}%"


def _gpu_memory(gpus: tuple[Gpu, ...]) -> str:
    """`18/24` where all are alike, otherwise the least and the most that is used: `0-18/24`."""
    used = sorted(gpu.memory_mib.used / 1024 for gpu in gpus)
    least, most = f"{used[0]:.0f}", f"{used[-1]:.0f}"
    total = max(gpu.memory_mib.total for gpu in gpus) / 1024
    return f"{least if least == most else f'{least}-{most}'}/{total:.0f}"


def _table(*columns: str, wide: bool) -> Table:
    """A table whose columns with a `>` stand to the right."""
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="bold", pad_edge=False)
    for name in columns:
        to_right, name = name.startswith(">"), name.lstrip(">")
        justify = "right" if to_right else "left"
        table.add_column(
            name,
            justify=justify,  # type: ignore[arg-type]
            no_wrap=name not in _GIVE_WAY,
            max_width=16 if name == "owner" and wide else 8 if name == "owner" else None,
        )
    return table


def _short(count: int) -> str:
    """Thousands as `160k`, where that is long."""
    return str(count) if count < 10_000 else f"{count // 1000}k"


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _shown(value: T | None, how: Callable[[T], str]) -> str:
    return "" if value is None else how(value)


def _and_more(count: int, what: str, where: str = "") -> list[RenderableType]:
    return [Text(f"and {count} more {what}{'s' if count > 1 else ''}{where}", style="dim")] if count > 0 else []


def _total(uses: Iterable[Use]) -> Use:
    uses = list(uses)
    return Use(sum(use.used for use in uses), sum(use.total for use in uses))


def _of(use: Use) -> str:
    return f"{use.used:g}/{use.total:g}"


def _gib(use: Use) -> str:
    return "/".join(f"{amount / _GIB:.{0 if amount >= 10 * _GIB else 1}f}" for amount in (use.used, use.total))
