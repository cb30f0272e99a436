"""Two pictures of a sweep: how the trials learned, and what the configurations cost.

    png = as_png(draw_curves(record))

Every `draw_` returns None where there is nothing to draw yet. A configuration has one colour in all pictures;
configurations beyond the palette are grey.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter
from matplotlib.transforms import Bbox

from vitrail.drawing import COLOURS, FAINT, GREY, WIDTH, add_legend, plain, tidy
from vitrail.sweep.labels import place_labels
from vitrail.sweep.pareto import pareto_front
from vitrail.sweep.record import SweepRecord, Trial
from vitrail.sweep.statistics import ConfigurationScores, SweepStatistics, ranked_labels, summarise

_NAMED_POINTS, _NAMED_LENGTH = 12, 44


def draw_curves(record: SweepRecord) -> Figure | None:
    """mIoU against step, a line per trial and a colour per configuration; beside it the second half enlarged."""
    if not any(trial.scores for trial in record.trials):
        return None
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    window = _window_of_the_end(record)
    panels = figure.subplots(1, 2 if window else 1, squeeze=False)[0]
    colours = _colours(record)
    for axes in panels:
        for trial in sorted(record.trials, key=lambda trial: colours[trial.label] != GREY):
            _draw_trial(axes, trial, colours[trial.label])
        tidy(axes, "training step")
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("mIoU on the validation images")
    if window:
        panels[1].set(xlim=(window.x0, window.x1), ylim=(window.y0, window.y1))
        panels[1].set_title("the second half, enlarged", fontsize=10, color=FAINT, loc="left")
    add_legend(figure, _curve_handles(record, colours))
    return figure


def draw_costs(record: SweepRecord) -> Figure | None:
    """Mean mIoU with its 95 % interval against speed and against memory, with the Pareto front as steps.

    Points carry the configuration's label where there are few, else its number in the order of `ranked_labels`.
    """
    statistics = summarise(record)
    points = [scores for scores in statistics.configurations if scores.label in record.costs]
    if not points:
        return None
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    colours = _colours(record)
    speed.set_ylim(_score_limits(points))
    speed.set_ylabel("mean of the best mIoU")
    speed.yaxis.set_major_formatter(PercentFormatter(1.0))
    speeds = {scores.label: record.costs[scores.label].predict_images_per_s for scores in points}
    memories = {scores.label: record.costs[scores.label].peak_memory_gib for scores in points}
    tidy(speed, "images/s predicted (more is better)")
    tidy(memory, "GiB of memory in training (less is better)")
    _draw_front(speed, points, speeds, better=1)
    _draw_front(memory, points, memories, better=-1)
    places = [(speed, _side_by_side(speed, speeds, better=1)), (memory, _side_by_side(memory, memories, better=-1))]
    for axes, xs in places:
        _draw_points(axes, points, xs, colours)
    add_legend(figure, _cost_handles(points))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed in pixels, which must not move any more
    texts = _point_texts(points, statistics)
    for axes, xs in places:
        place_labels(figure, axes, {(xs[scores.label], scores.mean): texts[scores.label] for scores in points})
    return figure


def _colours(record: SweepRecord) -> dict[str, str]:
    """By label, those of the highest mean first, so that a configuration has one colour in all pictures."""
    ranked = ranked_labels(record, summarise(record))
    return dict.fromkeys(ranked, GREY) | dict(zip(ranked, COLOURS, strict=False))


def _thousands(value: float, _: Any) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _window_of_the_end(record: SweepRecord) -> Bbox | None:
    """The second half of the steps and the scores there, of finished trials if any; None where it shows no more."""
    last = max(score.step for trial in record.trials for score in trial.scores)
    whole = [score.miou for trial in record.trials for score in trial.scores]
    trials = [trial for trial in record.trials if trial.status == "finished"] or record.trials
    end = [score for trial in trials for score in trial.scores if score.step >= last / 2]
    if len({score.step for score in end}) < 2:
        return None
    low, high = min(score.miou for score in end), max(score.miou for score in end)
    if high == low or high - low > 0.7 * (max(whole) - min(whole)):
        return None
    margin = 0.06 * (high - low)
    return Bbox.from_extents(last * 0.49, low - margin, last * 1.01, high + margin)


def _draw_trial(axes: Axes, trial: Trial, colour: str) -> None:
    if not trial.scores:
        return
    steps, mious = [score.step for score in trial.scores], [score.miou for score in trial.scores]
    axes.plot(steps, mious, color=colour, linewidth=1.3, marker="." if len(steps) == 1 else None, alpha=0.9)
    if trial.status in _END_MARKS:
        axes.plot(steps[-1], mious[-1], color=colour, zorder=3, **_END_MARKS[trial.status])


_END_MARKS: Mapping[str, dict[str, Any]] = {
    "stopped": {"marker": "s", "markersize": 6, "markeredgecolor": "white", "linestyle": "none"},
    "failed": {"marker": "X", "markersize": 9, "markeredgecolor": "white", "linestyle": "none"},
}


def _curve_handles(record: SweepRecord, colours: Mapping[str, str]) -> list[Line2D]:
    shown = [label for label, colour in colours.items() if colour != GREY]
    handles = [Line2D([], [], color=colours[label], linewidth=2.5, label=plain(label, 44)) for label in shown]
    if others := len(colours) - len(shown):
        handles.append(Line2D([], [], color=GREY, linewidth=2.5, label=f"{others} others"))
    for status, mark in _END_MARKS.items():
        if any(trial.status == status and trial.scores for trial in record.trials):
            handles.append(Line2D([], [], color=FAINT, label=f"{status} here", **mark))
    missing = [trial.status for trial in record.trials if not trial.scores]
    if missing:
        counts = ", ".join(f"{missing.count(status)} {status}" for status in dict.fromkeys(missing))
        handles.append(Line2D([], [], linestyle="none", label=f"without a validation: {counts}"))
    return handles


def _side_by_side(axes: Axes, costs: Mapping[str, float], *, better: int) -> dict[str, float]:
    """Where to draw costs, of which those that are the same stand next to each other.

    The first stays in its place and the others move to the worse side, lest they seem to be beyond the front.
    """
    left, right = axes.get_xlim()
    columns = {label: round(200 * (cost - left) / (right - left)) for label, cost in costs.items()}
    crowds, seen = Counter(columns.values()), Counter[int]()
    places = {}
    for label, column in columns.items():
        step = min(0.015, 0.06 / crowds[column]) * (right - left)
        places[label] = costs[label] - better * step * seen[column]
        seen[column] += 1
    return places


def _draw_points(
    axes: Axes, points: Sequence[ConfigurationScores], xs: Mapping[str, float], colours: Mapping[str, str]
) -> None:
    for scores in points:
        x, colour = xs[scores.label], colours[scores.label]
        if scores.interval is not None:
            axes.plot([x, x], [scores.interval.low, scores.interval.high], color=colour, linewidth=1.8, alpha=0.4)
        axes.plot(x, scores.mean, marker="o", markersize=7, color=colour, markeredgecolor="white", zorder=4)


def _cost_handles(points: Sequence[ConfigurationScores]) -> list[Line2D]:
    handles = [Line2D([], [], **_FRONT, label="Pareto front: nothing is better in both")]
    if any(scores.interval for scores in points):
        mark: dict[str, Any] = {"marker": "|", "markersize": 14, "markeredgewidth": 1.8, "linestyle": "none"}
        handles.append(Line2D([], [], color=FAINT, label="95 % interval of the mean", **mark))
    return handles


def _score_limits(points: Sequence[ConfigurationScores]) -> tuple[float, float]:
    """All scores and the intervals, but those of two seeds, which may be twenty times as wide as their difference."""
    bounds = [bound for scores in points for bound in scores.scores]
    bounds += [b for s in points if s.interval and s.n > 2 for b in (s.interval.low, s.interval.high)]
    margin = 0.15 * (max(bounds) - min(bounds)) or 0.01
    return min(bounds) - margin, max(bounds) + margin


def _draw_front(axes: Axes, points: Sequence[ConfigurationScores], costs: Mapping[str, float], *, better: int) -> None:
    """Up to this line something is at least as good in both; it runs on to the edges of the panel."""
    means = {scores.label: scores.mean for scores in points}
    front = pareto_front({label: (better * costs[label], means[label]) for label in means})
    margin = 0.25 * (max(costs.values()) - min(costs.values())) or 0.1 * max(costs.values()) or 1.0
    left, right, bottom = min(costs.values()) - margin, max(costs.values()) + margin, axes.get_ylim()[0]
    xs = [left if better > 0 else right, *(costs[label] for label in front), costs[front[-1]]]
    ys = [means[front[0]], *(means[label] for label in front), bottom]
    axes.step(xs, ys, where="pre", zorder=1, **_FRONT)
    axes.set_xlim(left, right)


_FRONT: dict[str, Any] = {"color": FAINT, "linewidth": 1.2, "linestyle": (0, (5, 3))}


def _point_texts(points: Sequence[ConfigurationScores], statistics: SweepStatistics) -> dict[str, tuple[str, str]]:
    """By label: what to write beside the point, and the number for where that finds no room."""
    labels = [scores.label for scores in statistics.configurations]
    numbers = {label: str(number) for number, label in enumerate(labels, start=1)}
    named = len(points) <= _NAMED_POINTS and max(len(scores.label) for scores in points) <= _NAMED_LENGTH
    texts = {label: plain(label, 24) if named else numbers[label] for label in labels}
    return {label: (texts[label], numbers[label]) for label in labels}
