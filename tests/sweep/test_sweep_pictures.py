"""The three pictures: what they show of which trials, and that any sweep can be drawn."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from sample_sweep import cost, record, sweep_of_necks, trial

from vitrail.drawing import as_png
from vitrail.sweep.effects import draw_dimensions
from vitrail.sweep.pictures import draw_costs, draw_curves
from vitrail.sweep.record import Cost, SweepRecord

NECKS = {"none": (0.30, 0.31, 0.32), "mln": (0.40, 0.41, 0.42), "ln_mln": (0.41, 0.42, 0.43)}
COSTS = {"none": cost(90.0, 1.0), "mln": cost(60.0, 2.0), "ln_mln": cost(50.0, 3.0)}


def grid(count: int, *, status: str = "finished") -> SweepRecord:
    """One configuration per trial: a rate drawn from a range, and one of three necks."""
    rng = np.random.default_rng(0)
    necks = itertools.cycle(("none", "mln", "ln_mln"))
    rates = (10 ** rng.uniform(-4, -2, count)).round(6).tolist()
    trials = [
        trial({"neck": neck, "lr": rate}, float(rng.uniform(0.3, 0.4)), status=status)  # type: ignore[arg-type]
        for neck, rate in zip(necks, rates, strict=False)
    ]
    costs = {each.label: cost(float(rng.uniform(40, 60)), float(rng.uniform(1, 3))) for each in trials}
    return record(trials, costs=costs, dimensions={"neck": ("none", "mln", "ln_mln"), "lr": ()})


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def curves_in(axes: Axes) -> list[tuple[tuple[float, ...], str]]:
    """The scores and the colour of every line that is more than a mark."""
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]  # type: ignore[arg-type]
    return [(tuple(np.asarray(line.get_ydata()).tolist()), to_hex(line.get_color())) for line in lines]


def words_in(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_curves_show_every_trial_in_the_colour_of_its_configuration() -> None:
    sweep = sweep_of_necks(NECKS | {"ln_mln": (0.415, 0.425, 0.435)})
    figure = drawn(draw_curves(sweep))
    lines = dict(curves_in(figure.axes[0]))
    assert set(lines) == {tuple(score.miou for score in each.scores) for each in sweep.trials}
    colours = {
        label: {lines[tuple(score.miou for score in each.scores)] for each in sweep.trials_of(label)} for label in NECKS
    }
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3
    assert legend_of(figure) == ["ln_mln", "mln", "none"]


def test_curves_mark_how_trials_ended_and_count_those_without_a_validation() -> None:
    trials = [
        trial({"neck": "none"}, 0.4),
        trial({"neck": "mln"}, 0.2, status="stopped"),
        trial({"neck": "ln_mln"}, 0.1, status="failed"),
        trial({"neck": "mln"}, None, status="failed", seed=1),
        trial({"neck": "mln"}, None, status="waiting", seed=2),
    ]
    figure = drawn(draw_curves(record(trials)))
    marks = {line.get_marker(): line.get_ydata() for line in figure.axes[0].get_lines() if line.get_marker() in "sX"}
    assert {str(marker): np.asarray(y).tolist() for marker, y in marks.items()} == {"s": [0.2], "X": [0.1]}
    assert legend_of(figure)[3:] == ["stopped here", "failed here", "without a validation: 1 failed, 1 waiting"]


def test_configurations_beyond_the_palette_are_grey_and_counted() -> None:
    figure = drawn(draw_curves(grid(30)))
    colours = [colour for _, colour in curves_in(figure.axes[0])]
    assert len(set(colours)) == 8 and max(map(colours.count, colours)) == 23
    assert "23 others" in legend_of(figure)


def test_second_half_is_enlarged_to_the_finished_trials() -> None:
    sweep = sweep_of_necks({"none": (0.40,), "mln": (0.41,)})
    stopped = trial({"neck": "ln_mln"}, 0.1, status="stopped")
    figure = drawn(draw_curves(sweep.with_trial(stopped)))
    low, high = figure.axes[1].get_ylim()
    assert 0.3 < low < 0.8 * 0.40 and 0.41 < high < 0.43
    assert figure.axes[1].get_xlim()[0] == pytest.approx(1_000, abs=50)


def test_points_of_costs_carry_means_intervals_and_names() -> None:
    figure = drawn(draw_costs(sweep_of_necks(NECKS, costs=COSTS)))
    speed, memory = figure.axes
    for axes, costs in ((speed, {90.0: 0.31, 60.0: 0.41, 50.0: 0.42}), (memory, {1.0: 0.31, 2.0: 0.41, 3.0: 0.42})):
        dots = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "o"]
        assert {float(x): float(y) for ((x, y),) in dots} == pytest.approx(costs)  # type: ignore[misc]
        assert sorted(words_in(axes)) == ["ln_mln", "mln", "none"]
    bars = [line.get_ydata() for line in speed.get_lines() if len(set(line.get_xdata())) == 1]  # type: ignore[arg-type]
    lengths = [max(y) - min(y) for y in map(np.asarray, bars) if len(y) == 2]
    assert lengths == pytest.approx([2 * 4.3027 * 0.01 / 3**0.5] * 3, rel=1e-3)


def test_front_is_the_border_of_what_is_attainable() -> None:
    sweep = grid(12)
    figure = drawn(draw_costs(sweep))
    means = {each.label: each.best.miou for each in sweep.trials if each.best}
    speed, memory = figure.axes

    def front_at(axes: Axes, x: float) -> float:
        (line,) = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-pre"]
        xs, ys = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        pieces = [y for a, b, y in zip(xs, xs[1:], ys[1:], strict=False) if min(a, b) < x < max(a, b)]
        return float(pieces[0]) if pieces else 0.0

    for x in np.linspace(38.123, 62.123, 25):
        attainable = [means[label] for label, of in sweep.costs.items() if of.predict_images_per_s >= x]
        if speed.get_xlim()[0] < x:
            assert front_at(speed, x) == pytest.approx(max(attainable, default=0.0))
    for x in np.linspace(0.8123, 3.2123, 25):
        attainable = [means[label] for label, of in sweep.costs.items() if of.peak_memory_gib <= x]
        if x < memory.get_xlim()[1]:
            assert front_at(memory, x) == pytest.approx(max(attainable, default=0.0))


@pytest.mark.parametrize("count", [6, 12, 30])
def test_labels_of_points_do_not_overlap(count: int) -> None:
    figure = drawn(draw_costs(grid(count)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        labels = [text for text in axes.texts if text.get_text()]
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in labels]
        assert len(boxes) >= 0.8 * count
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(text.get_text().isdigit() for text in labels) == (count > 12)


def test_dimensions_show_means_of_choices_and_log_scales_of_wide_ranges() -> None:
    sweep = grid(30)
    figure = drawn(draw_dimensions(sweep))
    necks, rates = figure.axes
    means = [np.mean([t.best.miou for t in sweep.trials[n::3] if t.best]) for n in range(3)]
    ticks = [tick.get_text() for tick in necks.get_xticklabels()]
    assert ticks == [f"{neck}\n{mean:.2%}" for neck, mean in zip(("none", "mln", "ln_mln"), means, strict=True)]
    assert (necks.get_xscale(), rates.get_xscale()) == ("linear", "log")
    dots = [line.get_xydata() for line in rates.get_lines()]
    expected = {(t.configuration["lr"], t.best.miou) for t in sweep.trials if t.best}
    assert {(float(x), float(y)) for ((x, y),) in dots} == expected  # type: ignore[misc]


def test_unfinished_trials_are_hollow_and_do_not_press_the_others_flat() -> None:
    trials = [*sweep_of_necks(NECKS).trials, trial({"neck": "none"}, 0.02, status="stopped", seed=3)]
    figure = drawn(draw_dimensions(record(trials)))
    hollow = [line for line in figure.axes[0].get_lines() if line.get_color() == "white"]
    assert [str(line.get_marker()) for line in hollow] == ["v"]
    assert figure.axes[0].get_ylim()[0] > 0.15
    assert legend_of(figure)[-1] == "not finished, below the edge"


DEGENERATE: dict[str, tuple[SweepRecord, tuple[bool, bool, bool]]] = {
    "empty": (record([]), (False, False, False)),
    "waiting": (record([trial({"neck": "none"}, None, status="waiting")]), (False, False, False)),
    "one trial": (sweep_of_necks({"none": [0.3]}, costs=COSTS), (True, True, True)),
    "one seed": (sweep_of_necks({"none": [0.3], "mln": [0.4]}, costs=COSTS), (True, True, True)),
    "equal scores": (sweep_of_necks({"none": [0.3, 0.3], "mln": [0.3, 0.3]}, costs=COSTS), (True, True, True)),
    "two seeds": (sweep_of_necks({"none": [0.3, 0.5], "mln": [0.4, 0.41]}, costs=COSTS), (True, True, True)),
    "only stopped": (grid(5, status="stopped"), (True, False, True)),
    "no costs": (sweep_of_necks(NECKS), (True, False, True)),
    "some costs": (sweep_of_necks(NECKS, costs={"mln": COSTS["mln"]}), (True, True, True)),
    "no dimensions": (sweep_of_necks(NECKS, dimensions={}), (True, False, False)),
    "formula": (sweep_of_necks({r"$\frac$": [0.3], "$": [0.4]}, costs={"$": COSTS["mln"]}), (True, True, True)),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_any_sweep_is_drawn_or_has_nothing_to_draw(case: str) -> None:
    sweep, expected = DEGENERATE[case]
    figures = [draw(sweep) for draw in (draw_curves, draw_costs, draw_dimensions)]
    assert tuple(figure is not None for figure in figures) == expected
    for figure in figures:
        if figure is not None:
            pixels = np.asarray(Image.open(io.BytesIO(as_png(figure))).convert("RGB"))
            assert pixels.shape[1] == 1_600 and (pixels[0] == 255).all() and (pixels < 128).any()


def test_equal_costs_are_drawn_side_by_side_and_never_beyond_the_front() -> None:
    figure = drawn(draw_costs(sweep_of_necks(NECKS, costs=dict.fromkeys(NECKS, cost(60.0, 2.0)))))
    for axes, side, at in ((figure.axes[0], -1, 60.0), (figure.axes[1], 1, 2.0)):
        dots = {
            float(y): float(x) for line in axes.get_lines() if line.get_marker() == "o" for x, y in line.get_xydata()
        }
        assert dots.pop(max(dots)) == at, "the highest mean stays in its place"
        assert len(set(dots.values())) == 2 and all(0 < side * (x - at) < 0.05 * at for x in dots.values())


def test_costs_of_unknown_labels_are_ignored() -> None:
    costs: dict[str, Cost] = COSTS | {"other": cost(10.0)}
    figure = drawn(draw_costs(sweep_of_necks(NECKS, costs=costs)))
    assert sorted(words_in(figure.axes[0])) == ["ln_mln", "mln", "none"]
