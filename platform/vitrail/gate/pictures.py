"""Two pictures of a judgement: how the difference in mIoU spreads over draws of the images, and each class's change."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vitrail.drawing import COLOURS, FAINT, GREY, INK, WIDTH, plain, tidy
from vitrail.gate.verdict import ClassDifference, Verdict

_BLUE, _ORANGE = COLOURS[:2]
_MAX_CLASSES = 30


def draw_gain(verdict: Verdict) -> Figure | None:
    """Histogram of the bootstrap's differences in mIoU, with the interval and what it must exceed; None without any."""
    if verdict.differences is None:
        return None
    draws, gain = verdict.differences.miou_draws, verdict.differences.miou_interval()
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(100 * draws, bins=60, color=_BLUE, alpha=0.55)
    axes.axvspan(100 * gain.low, 100 * gain.high, color=_BLUE, alpha=0.12, label="95 % of the draws")
    axes.axvline(100 * gain.estimate, color=INK, label="all images")
    axes.axvline(100 * verdict.rules.least_gain, color=_ORANGE, linestyle="--", label="to be exceeded by the interval")
    tidy(axes, "mIoU of the candidate less the champion's, percentage points")
    axes.set_ylabel("draws of the images")
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_classes(verdict: Verdict) -> Figure | None:
    """Each class's change in IoU with its interval, those with enough pixels in colour; the largest changes first."""
    rows = largest_changes(verdict)
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 1.0 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        colour = _colour(row, verdict)
        low, middle, high = (100 * getattr(row.difference, name) for name in ("low", "estimate", "high"))
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
        axes.plot([middle], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.axvline(-100 * verdict.rules.max_class_drop, color=_ORANGE, linestyle="--")
    axes.set_yticks(range(len(rows)), [plain(row.name.split(";")[0], 24) for row in reversed(rows)])
    tidy(axes, "change in IoU, percentage points; dashed: the most that a class may lose")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}"))
    return figure


def largest_changes(verdict: Verdict) -> list[ClassDifference]:
    """The classes that both models have a score for, the largest change first, at most thirty."""
    known = [row for row in verdict.classes() if row.difference.estimate == row.difference.estimate]
    return sorted(known, key=lambda row: -abs(row.difference.estimate))[:_MAX_CLASSES]


def _colour(row: ClassDifference, verdict: Verdict) -> str:
    if row.share < verdict.rules.min_class_share:
        return GREY
    return _ORANGE if row.difference.estimate < -verdict.rules.max_class_drop else _BLUE
