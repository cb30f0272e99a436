"""A sweep as one HTML page for a person who did not run it: what to use, how sure that is, and what it costs.

    Path("report.html").write_text(render_report(record))

Names and errors come from elsewhere, so every text is escaped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from matplotlib.figure import Figure

from vitrail.drawing import as_png
from vitrail.errors import VitrailError
from vitrail.html import document, inline_image, number_cell
from vitrail.sweep.decision import Decision, decide
from vitrail.sweep.effects import draw_dimensions
from vitrail.sweep.pictures import draw_costs, draw_curves
from vitrail.sweep.record import Cost, Status, SweepRecord, Trial, Value
from vitrail.sweep.statistics import Difference, SweepStatistics, ranked_labels, summarise
from vitrail.words import plural

_TAGS: dict[Status, str] = {"finished": "ok", "failed": "error", "stopped": "warning"}
_RULES = {
    "score": "the highest mean mIoU",
    "cost": "the fastest to predict (or, among those as fast, the smallest in memory) within noise of the highest mean "
    "mIoU",
}

_NAMED = 5  # of those within noise, in the verdict

_CSS = """
.wide { overflow-x: auto; } .wide table { font-size: 14px; }
.wide th { vertical-align: bottom; } th.number { white-space: normal; }
tr.winner { background: #ecf5ee; } tr.winner td:nth-child(2) { font-weight: 600; }
.wide td:nth-child(2) { min-width: 120px; } .wide td.path { min-width: 190px; }
td.error { font-size: 13px; color: var(--error); overflow-wrap: anywhere; max-width: 420px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 8px 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.picture { max-width: 1040px; width: 100%; display: block; margin: 10px 0; }
"""


def render_report(record: SweepRecord) -> str:
    """The page, of a sweep that is over or still runs."""
    statistics = summarise(record)
    try:
        decision, problem = decide(record), None
    except VitrailError as error:
        decision, problem = None, str(error)
    parts = [
        f'<h1>{escape(record.name)}</h1><p class="faint">a sweep of {plural(len(record.labels), "configuration")} in '
        f"{plural(len(record.trials), 'trial')}</p>",
        _verdict(record, decision, problem, statistics),
        _setting(record),
        _configurations(record, decision, statistics),
        _pictures(record),
        _trials(record),
        _HOW_TO_READ,
    ]
    return document(f"Sweep: {record.name}", parts, css=_CSS)


def _verdict(record: SweepRecord, decision: Decision | None, problem: str | None, statistics: SweepStatistics) -> str:
    if decision is None:
        return f'<p class="verdict error">Nothing to choose from: {escape(problem or "")}</p>'
    unfinished = _unfinished(record)
    colour = "ok" if decision.noise_known and not unfinished else "warning"
    so_far = f"So far, with {unfinished}: " if unfinished else ""
    cost = _cost_sentence(record.costs.get(decision.winner))
    text = f"<b>{escape(so_far)}{escape(decision.reason)}</b><br>{escape(cost)}"
    if decision.within_noise:
        named, more = decision.within_noise[:_NAMED], len(decision.within_noise[_NAMED:])
        names = [f"{label} ({_mean(statistics, label)})" for label in named] + [f"and {more} more"] * bool(more)
        text += f"<br>Within noise of it: {escape('; '.join(names))}."
    place = decision.trial.checkpoint
    kept = f', checkpoint <span class="path">{escape(place)}</span>' if place else ""
    text += f'<br><span class="faint">Its best trial is {escape(decision.trial.name)}{kept}.</span>'
    return f'<p class="verdict {colour}">{text}</p>'


def _unfinished(record: SweepRecord) -> str:
    """`2 trials running, 3 waiting`, or nothing once the sweep is over."""
    counts = Counter(trial.status for trial in record.trials)
    states: tuple[Status, ...] = ("running", "waiting")
    return ", ".join(f"{plural(counts[state], 'trial')} {state}" for state in states if counts[state])


def _cost_sentence(cost: Cost | None) -> str:
    if cost is None:
        return "What it costs was not measured."
    return (
        f"Its cost: {cost.predict_images_per_s:,.1f} images/s predicted, {cost.train_images_per_s:,.1f} images/s "
        f"trained on each worker, {cost.peak_memory_gib:.2f} GiB at the peak of training, "
        f"{cost.parameters / 1e6:,.1f} M parameters."
    )


def _mean(statistics: SweepStatistics, label: str) -> str:
    scores = statistics.of(label)
    return f"{scores.mean:.2%}" if scores else "-"


def _setting(record: SweepRecord) -> str:
    steps = sorted({trial.total_steps for trial in record.trials})
    seeds = sorted({trial.seed for trial in record.trials})
    hours = sum(trial.seconds for trial in record.trials) / 3600
    facts = {
        **{f"varied: {name}": _choices(record, name) for name in record.dimensions},
        "seeds": ", ".join(map(str, seeds)) or "none",
        "recipe": record.recipe,
        "data": f"{record.data}, judged on {plural(record.val_images, 'validation image')}",
        "steps of a trial": " or ".join(f"{step:,}" for step in steps) or "none",
        "machine": f"{plural(record.workers, 'worker')} for each trial, on {record.device}; {hours:,.1f} h in all",
        "search, scheduler": f"{record.search}, {record.scheduler}",
        "rule": _RULES[record.rule],
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<h2>What was tried</h2><dl>{rows}</dl>"


def _choices(record: SweepRecord, name: str) -> str:
    if choices := record.dimensions[name]:
        return ", ".join(map(_value, choices))
    drawn = [trial.configuration[name] for trial in record.trials if name in trial.configuration]
    numbers = [value for value in drawn if isinstance(value, int | float)]
    return f"drawn from a range, {min(numbers):g} to {max(numbers):g}" if numbers else "drawn from a range"


def _value(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _configurations(record: SweepRecord, decision: Decision | None, statistics: SweepStatistics) -> str:
    heads = {
        "": True, "configuration": False, "mIoU, mean %": True, "± std": True, "95 % interval": True, "seeds": True,
        "less the winner's, points": True, "within noise": False, "images/s predicted": True, "images/s trained": True,
        "GiB": True, "parameters, M": True, "GFLOPs": True,
    }  # fmt: skip
    winner = decision.winner if decision else None
    rows = []
    for number, label in enumerate(ranked_labels(record, statistics), start=1):
        cells = [
            number_cell(str(number)),
            f"<td>{escape(label)}</td>",
            *_score_cells(record, label, statistics),
            *_difference_cells(label, winner, statistics),
            *_cost_cells(record.costs.get(label)),
        ]
        kind = "winner" if label == winner else "other"
        rows.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return (
        f"<h2>Configurations</h2>{_table(heads, rows)}"
        '<p class="faint">The highest mean first; the chosen one is shaded. Only finished trials are averaged. Speeds '
        "are measured alone for a moment, prediction with one image at a time; GiB is the peak of a training step; "
        "GFLOPs are nominal, of one image's forward pass.</p>"
    )


def _score_cells(record: SweepRecord, label: str, statistics: SweepStatistics) -> list[str]:
    scores, trials = statistics.of(label), len(record.trials_of(label))
    if scores is None:
        return [*map(number_cell, ("-", "-", "-")), number_cell(f"0 of {trials}")]
    std = f"{100 * scores.std:.2f}" if scores.std is not None else "-"
    interval = f"{100 * scores.interval.low:.2f} to {100 * scores.interval.high:.2f}" if scores.interval else "-"
    seeds = str(trials) if scores.n == trials else f"{scores.n} of {trials}"
    return [*map(number_cell, (f"{100 * scores.mean:.2f}", std, interval, seeds))]


def _difference_cells(label: str, winner: str | None, statistics: SweepStatistics) -> list[str]:
    if label == winner:
        return [number_cell("-"), "<td>chosen</td>"]
    difference = statistics.difference(label, winner) if winner else None
    if difference is None or winner is None:
        return [number_cell("-"), "<td>-</td>"]
    verdict = {True: "yes", False: "no", None: "unknown"}[statistics.within_noise(label, winner)]
    return [number_cell(_in_points(difference)), f"<td>{verdict}</td>"]


def _in_points(difference: Difference) -> str:
    """`-0.43 (-1.10 to +0.24)`"""
    interval = difference.interval
    span = f" ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})" if interval else ""
    return f"{100 * difference.mean:+.2f}{span}".replace("-", "\N{MINUS SIGN}")


def _cost_cells(cost: Cost | None) -> list[str]:
    if cost is None:
        return [number_cell("-")] * 5
    texts = (
        f"{cost.predict_images_per_s:,.1f}",
        f"{cost.train_images_per_s:,.1f}",
        f"{cost.peak_memory_gib:,.2f}",
        f"{cost.parameters / 1e6:,.1f}",
        f"{cost.nominal_flops / 1e9:,.1f}",
    )
    return [*map(number_cell, texts)]


def _trials(record: SweepRecord) -> str:
    heads = {
        "trial": False, "configuration": False, "seed": True, "status": False, "best mIoU %": True, "at step": True,
        "steps done": True, "minutes": True, "error": False,
    }  # fmt: skip
    order = {label: place for place, label in enumerate(ranked_labels(record, summarise(record)))}
    rows = [_trial_row(trial) for trial in sorted(record.trials, key=lambda trial: (order[trial.label], trial.seed))]
    return f"<h2>Trials</h2>{_table(heads, rows)}"


def _trial_row(trial: Trial) -> str:
    best, step = (f"{100 * trial.best.miou:.2f}", f"{trial.best.step:,}") if trial.best else ("-", "-")
    return (
        f'<tr><td class="path">{escape(trial.name)}</td><td>{escape(trial.label)}</td>{number_cell(str(trial.seed))}'
        f'<td><span class="tag {_TAGS.get(trial.status, "note")}">{trial.status}</span></td>'
        f"{number_cell(best)}{number_cell(step)}{number_cell(f'{trial.step:,} of {trial.total_steps:,}')}"
        f'{number_cell(f"{trial.seconds / 60:,.1f}")}<td class="error">{escape(trial.error or "")}</td></tr>'
    )


def _table(heads: dict[str, bool], rows: Sequence[str]) -> str:
    """`heads` says of each column whether it holds numbers."""
    head = "".join(f'<th class="{"number" if is_number else "text"}">{name}</th>' for name, is_number in heads.items())
    body = "".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _pictures(record: SweepRecord) -> str:
    return "".join(_picture(record, *picture) for picture in _PICTURES)


def _picture(record: SweepRecord, title: str, draw: Callable[[SweepRecord], Figure | None], how_to_read: str) -> str:
    figure = draw(record)
    if figure is None:
        return f'<h2>{title}</h2><p class="faint">Nothing to draw yet.</p>'
    source = inline_image(as_png(figure), "png")
    return f'<h2>{title}</h2><p>{how_to_read}</p><img class="picture" alt="{title}" src="{source}">'


_PICTURES = (
    (
        "How the trials learned",
        draw_curves,
        "A line is a trial, its colour the configuration; lines of one colour differ by their seed alone, so that the "
        "gap between them is noise.",
    ),
    (
        "What the score costs",
        draw_costs,
        "A point is a configuration's mean mIoU; good is at the top right on the left, and at the top left on the "
        "right. Only points on the dashed line are worth a choice, as far as noise allows: where the bars are longer "
        "than the steps, the order of the points may be chance. A bar that leaves the picture comes of two seeds; "
        "points of the same cost stand side by side; a number stands for a row of the table above.",
    ),
    (
        "What each dimension does",
        draw_dimensions,
        "A dot is a trial, over all choices of the other dimensions. A dimension matters if its columns stand apart by "
        "more than the dots within one of them are spread; a range, if the dots rise or fall along it.",
    ),
)

_HOW_TO_READ = """<h2>How to read this</h2>
<p><b>mIoU</b> is in percent, of the whole validation set; differences are in percentage points. A trial counts with the
best of its validations, which is the one whose checkpoint is kept; a best of several flatters every trial a little, and
all of them alike.</p>
<p><b>95 % interval.</b> Another seed would have given another score. In 95 of 100 sweeps, such an interval holds the
mean that very many seeds would have. It follows from these seeds alone (Student's t), and is therefore wide with two of
them. It does not tell how the model does on other data.</p>
<p><b>Within noise</b> of the chosen one is a configuration whose difference to it the seeds alone could explain: the
interval of the difference holds 0. These intervals hold for all pairs together (Tukey and Kramer's method, with one
spread of the seeds for all configurations), although the best was picked after the fact. It does not mean that two
configurations are equal: more seeds may yet tell them apart. With one seed each, noise is <b>unknown</b>, and no
difference is called real or not.</p>
<p><b>Stopped</b> is a trial that the scheduler ended early because others were ahead of it; <b>failed</b>, one that
ended with an error. Neither had its full budget, so they are listed and drawn but not averaged.</p>"""
