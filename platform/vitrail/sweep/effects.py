"""What each dimension of a sweep does to the score, as a picture."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from vitrail.drawing import COLOURS, INK, WIDTH, add_legend, plain, tidy
from vitrail.sweep.record import SweepRecord, Trial, Value


def draw_dimensions(record: SweepRecord) -> Figure | None:
    """Best mIoU of every trial by each dimension alone: columns of dots for choices, a scatter for a range."""
    trials = [trial for trial in record.trials if trial.best]
    if not trials or not record.dimensions:
        return None
    columns = min(3, len(record.dimensions))
    rows = -(-len(record.dimensions) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    floor = _floor(trials)
    for axes, (name, choices) in zip(grid.flat, record.dimensions.items(), strict=False):
        _draw_dimension(axes, name, choices, trials, floor)
    for axes in grid.flat[len(record.dimensions) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("best mIoU of a trial")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    add_legend(figure, _dot_handles(trials, floor, has_choices=any(record.dimensions.values())))
    return figure


def _floor(trials: Sequence[Trial]) -> float:
    """Below this, trials that were not finished are drawn at the edge, lest they press the others flat."""
    scores = [trial.best.miou for trial in trials if trial.best]
    finished = [trial.best.miou for trial in trials if trial.best and trial.status == "finished"]
    if not finished:
        return min(scores)
    return max(min(scores), min(finished) - max(max(finished) - min(finished), 0.005))


def _draw_dimension(axes: Axes, name: str, choices: Sequence[Value], trials: Sequence[Trial], floor: float) -> None:
    chosen = [(trial, trial.configuration[name]) for trial in trials if name in trial.configuration]
    numbers = [value for _, value in chosen if isinstance(value, int | float) and not isinstance(value, bool)]
    tidy(axes, plain(name, 40))
    if choices or len(numbers) < len(chosen):
        axes.grid(visible=False, axis="x")
        texts = list(dict.fromkeys(_text(value) for value in [*choices, *(value for _, value in chosen)]))
        _draw_choices(axes, texts, [(trial, _text(value)) for trial, value in chosen], floor)
        return
    if numbers and min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        axes.set_xscale("log")
    for trial, number in zip((trial for trial, _ in chosen), numbers, strict=True):
        _draw_dot(axes, number, trial, floor)


def _draw_choices(axes: Axes, texts: Sequence[str], chosen: Sequence[tuple[Trial, str]], floor: float) -> None:
    ticks = []
    for column, text in enumerate(texts):
        trials = [trial for trial, choice in chosen if choice == text]
        for index, trial in enumerate(trials):
            _draw_dot(axes, column + _spread(index, len(trials)), trial, floor)
        ticks.append(plain(text, 18))
        finished = [trial.best.miou for trial in trials if trial.best and trial.status == "finished"]
        if finished:
            mean = fmean(finished)
            axes.plot([column - 0.36, column + 0.36], [mean, mean], color=INK, linewidth=2, zorder=1.5)
            ticks[-1] += f"\n{mean:.2%}"
    is_crowded = max(len(text) for text in texts) * len(texts) > 36
    axes.set_xticks(range(len(texts)), ticks, rotation=40 if is_crowded else 0)
    axes.set_xlim(-0.6, len(texts) - 0.4)


def _spread(index: int, count: int) -> float:
    """Side by side, lest equal scores hide each other."""
    return 0.0 if count == 1 else 0.5 * (index / (count - 1) - 0.5)


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _draw_dot(axes: Axes, x: float, trial: Trial, floor: float) -> None:
    assert trial.best is not None
    is_finished = trial.status == "finished"
    marker = "o" if trial.best.miou >= floor else "v"
    face = COLOURS[0] if is_finished else "white"
    axes.plot(x, max(floor, trial.best.miou), marker, markersize=6, color=face, markeredgecolor=COLOURS[0], alpha=0.7)


def _dot_handles(trials: Sequence[Trial], floor: float, *, has_choices: bool) -> list[Line2D]:
    style: dict[str, Any] = {"linestyle": "none", "markersize": 6, "markeredgecolor": COLOURS[0]}
    unfinished = [trial.best.miou for trial in trials if trial.best and trial.status != "finished"]
    handles = []
    if len(unfinished) < len(trials):
        handles.append(Line2D([], [], marker="o", color=COLOURS[0], label="finished trial", **style))
        if has_choices:
            handles.append(Line2D([], [], color=INK, linewidth=2.2, label="their mean, as written below"))
    if any(score >= floor for score in unfinished):
        handles.append(Line2D([], [], marker="o", color="white", label="not finished", **style))
    if any(score < floor for score in unfinished):
        handles.append(Line2D([], [], marker="v", color="white", label="not finished, below the edge", **style))
    return handles
