"""A judgement as one HTML page: passed or not, each rule with its numbers, the pictures, both models' origins.

    Path("verdict.html").write_text(render_verdict(verdict))

Names come from elsewhere, so every text is escaped.
"""

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from vitrail.drawing import as_png
from vitrail.gate.bootstrap import RESAMPLES
from vitrail.gate.evidence import Evidence
from vitrail.gate.pictures import draw_classes, draw_gain
from vitrail.gate.verdict import Verdict
from vitrail.html import document, inline_image, number_cell

_CSS = """
.picture { max-width: 1040px; width: 100%; display: block; margin: 10px 0; }
td:first-child { white-space: nowrap; } td { overflow-wrap: anywhere; }
"""


def render_verdict(verdict: Verdict) -> str:
    """The page."""
    candidate = verdict.candidate
    title = f"{candidate.name} version {candidate.version}"
    parts = [
        f'<h1>{escape(title)}</h1><p class="faint">{escape(_against(verdict))}</p>',
        _outcome(verdict),
        _rules(verdict),
        _models(verdict),
        _picture("How sure the difference is", draw_gain(verdict), _GAIN_NOTE),
        _picture("Classes", draw_classes(verdict), _CLASSES_NOTE),
        _classes(verdict),
    ]
    return document(f"Gate: {title}", parts, css=_CSS)


_GAIN_NOTE = (
    f"The validation images are drawn anew {RESAMPLES:,} times, with replacement, the same ones for both models, and "
    "both are scored on each draw. Images that are hard for both do not count as a difference."
)
_CLASSES_NOTE = "The thirty largest changes. Grey classes have too few pixels to be judged."


def _against(verdict: Verdict) -> str:
    images = f"{verdict.judged_on.images:,} validation images of {verdict.judged_on.name}"
    if verdict.champion is None:
        return f"the first champion, judged on {images}"
    return f"against {verdict.champion.name} version {verdict.champion.version}, on {images}"


def _outcome(verdict: Verdict) -> str:
    failed = [result.rule for result in verdict.results if not result.passed]
    if not failed:
        return '<p class="verdict ok"><b>Passed.</b> Every rule holds.</p>'
    return f'<p class="verdict error"><b>Not passed:</b> {escape(", ".join(failed))}.</p>'


def _rules(verdict: Verdict) -> str:
    rows = "".join(
        f"<tr><td>{escape(result.rule)}</td><td>{_tag(result.passed)}</td><td>{escape(result.detail)}</td></tr>"
        for result in verdict.results
    )
    return f"<h2>Rules</h2>{_table(('rule', '', 'numbers'), rows)}"


def _tag(passed: bool) -> str:
    return '<span class="tag ok">passed</span>' if passed else '<span class="tag error">failed</span>'


def _models(verdict: Verdict) -> str:
    models = [model for model in (verdict.candidate, verdict.champion) if model is not None]
    heads = ["", *(f"{model.name} version {model.version}" for model in models)]
    rows = ""
    for label, texts in _facts(models).items():
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        rows += f"<tr><td>{escape(label)}</td>{cells}</tr>"
    return f"<h2>The models</h2>{_table(heads, rows)}"


def _facts(models: Sequence[Evidence]) -> dict[str, list[str]]:
    scored = [None if model.counts is None else model.scores for model in models]
    facts = {
        name: ["-" if scores is None else f"{getattr(scores, field):.2%}" for scores in scored]
        for name, field in (("mIoU", "miou"), ("mAcc", "macc"), ("aAcc", "aacc"))
    }
    facts["images/s"] = ["-" if model.cost is None else f"{model.cost.images_per_s:.3g}" for model in models]
    facts["GiB"] = ["-" if model.cost is None else f"{model.cost.peak_memory_gib:.2f}" for model in models]
    for name, field in (("recipe", "recipe"), ("data", "data_fingerprint"), ("code", "code"), ("start", "start")):
        facts[name] = [getattr(model.lineage, field) or "-" for model in models]
    facts["weights"] = [(model.lineage.weights_sha256 or "-")[:16] for model in models]
    return facts


def _picture(title: str, figure: Figure | None, note: str) -> str:
    if figure is None:
        return ""
    image = inline_image(as_png(figure), "png")
    return f'<h2>{title}</h2><p class="faint">{note}</p><img class="picture" alt="{title}" src="{image}">'


def _classes(verdict: Verdict) -> str:
    rows = ""
    for row in verdict.classes():
        change = row.difference
        span = "-" if change.low != change.low else f"{100 * change.low:+.2f} to {100 * change.high:+.2f}"
        cells = [_percent(row.candidate), _percent(row.champion), _signed(change.estimate), span, f"{row.share:.2%}"]
        rows += f"<tr><td>{escape(row.name)}</td>{''.join(map(number_cell, cells))}</tr>"
    if not rows:
        return ""
    heads = ("class", "IoU", "champion's", "change, points", "95 % interval", "of the pixels")
    return f"<h2>All classes</h2>{_table(heads, rows, numbers=True)}"


def _table(heads: Sequence[str], rows: str, *, numbers: bool = False) -> str:
    cells = "".join(
        f'<th class="number">{escape(head)}</th>' if numbers and place else f"<th>{escape(head)}</th>"
        for place, head in enumerate(heads)
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _signed(value: float) -> str:
    return "-" if value != value else f"{100 * value:+.2f}"
