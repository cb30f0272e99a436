"""Writes a diagnosis as one HTML page that needs nothing else: no script, no network, pictures inside.

    page = write_report(diagnosis, "doctor/camvid", picture=open_illustrator("SRC").picture)

File names are the data set's own, so every text is escaped.
"""

from collections.abc import Callable
from html import escape

import cv2

from vitrail.data.codec import UInt8Array
from vitrail.data.doctor.charts import class_table, size_chart
from vitrail.data.doctor.diagnosis import Diagnosis, FindingGroup, SplitSummary
from vitrail.data.doctor.findings import Finding, SampleRef
from vitrail.data.storage import Folder, Place
from vitrail.html import document, inline_image, number_cell
from vitrail.words import plural

Picture = Callable[[SampleRef], bytes | None]

_FINDINGS_SHOWN = 12
_PICTURED = {"error": 6, "warning": 6, "note": 3}
_SAMPLES_PICTURED = 4
_TEXT_LENGTH = 400

_CSS = """
ul.files { margin: 6px 0; padding-left: 18px; } ul.files li { margin: 1px 0; }
.shots { display: flex; flex-wrap: wrap; gap: 14px; margin: 10px 0 4px; align-items: flex-start; }
.together { display: flex; flex-wrap: wrap; gap: 10px; padding: 8px; border: 1px solid var(--line);
  border-radius: 6px; }
figure { margin: 0; max-width: 420px; } figure img { display: block; max-width: 100%; border-radius: 2px; }
figcaption { font-size: 12px; color: var(--faint); overflow-wrap: anywhere; max-width: 410px; }
.swatch { display: inline-block; width: 14px; height: 14px; border: 1px solid #0004; border-radius: 2px; }
.classes { width: auto; } .classes td { padding: 3px 18px 3px 0; vertical-align: middle; }
.bar { width: 200px; height: 12px; background: #f1f2f0; border-radius: 2px; }
.bar div { height: 100%; border-radius: 2px; min-width: 1px; outline: 1px solid #0003; outline-offset: -1px; }
.sheet { max-width: 100%; border: 1px solid var(--line); }
"""


def write_report(diagnosis: Diagnosis, out: Place, *, picture: Picture, sheet: UInt8Array | None = None) -> str:
    """Write report.json, report.html and, of a contact sheet, preview.png to `out`; returns the page's place.

    Raises:
        UsageError: the folder cannot be written to.
    """
    folder = Folder.at(out)
    folder.make_writable()
    preview = None
    if sheet is not None:
        preview = bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
        folder.write("preview.png", preview)
    folder.write("report.json", (diagnosis.model_dump_json(indent=1) + "\n").encode())
    folder.write("report.html", render_page(diagnosis, picture=picture, preview=preview).encode())
    return f"{folder}/report.html"


def render_page(diagnosis: Diagnosis, *, picture: Picture, preview: bytes | None = None) -> str:
    """The page. `picture` draws a sample as JPEG (or has none to show), `preview` is a contact sheet as PNG."""
    parts = [
        _head(diagnosis),
        _summary(diagnosis),
        _findings_table(diagnosis),
        _preview(preview),
        *(_details(group, picture) for group in diagnosis.groups),
        _zero(diagnosis),
        f"<h2>Classes</h2>{class_table(diagnosis)}",
        f"<h2>Image sizes</h2>{size_chart(diagnosis)}",
    ]
    return document(f"Doctor: {diagnosis.subject.name}", parts, css=_CSS)


def verdict(diagnosis: Diagnosis) -> str:
    """One sentence for a person."""
    errors, warnings = diagnosis.count("error"), diagnosis.count("warning")
    if errors:
        return f"{plural(errors, 'error')} would corrupt training, and {plural(warnings, 'warning')} to look at."
    if warnings:
        return f"No errors, and {plural(warnings, 'warning')} to look at."
    return "Nothing is wrong with this data set."


def _head(diagnosis: Diagnosis) -> str:
    subject = diagnosis.subject
    colour = "error" if diagnosis.count("error") else "warning" if diagnosis.count("warning") else "ok"
    what = "prepared data set" if subject.is_prepared else "source folder"
    return (
        f"<h1>{escape(subject.name)}</h1>"
        f'<p class="faint">{what} <span class="path">{escape(subject.place)}</span></p>'
        f'<p class="verdict {colour}">{verdict(diagnosis)}</p>'
    )


def _summary(diagnosis: Diagnosis) -> str:
    heads = ("images with masks", "readable", "classes seen", "unlabelled pixels", "median size")
    rows = [
        f"<tr><td>{escape(name)}</td>{''.join(number_cell(cell) for cell in _summary_row(split))}</tr>"
        for name, split in diagnosis.splits.items()
    ]
    head = "".join(f'<th class="number">{text}</th>' for text in heads)
    return f"<table><thead><tr><th>split</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _summary_row(split: SplitSummary) -> tuple[str, ...]:
    pixels = sum(split.class_pixels) + split.ignored_pixels
    seen = f"{sum(count > 0 for count in split.class_images)} of {len(split.class_images)}"
    size = "x".join(f"{side:g}" for side in split.sizes.median_width_height) if split.sizes else "-"
    ignored = f"{split.ignored_pixels / pixels:.1%}" if pixels else "-"
    return f"{split.samples:,}", f"{split.readable:,}", seen, ignored, size


def _findings_table(diagnosis: Diagnosis) -> str:
    if not diagnosis.groups:
        return ""
    rows = [
        f'<tr><td><span class="tag {g.kind.severity}">{g.kind.severity}</span></td>{number_cell(f"{g.count:,}")}'
        f'<td><a href="#{g.kind.name}">{_title(g)}</a></td><td>{escape(g.kind.meaning)}</td></tr>'
        for g in diagnosis.groups
    ]
    return (
        '<h2>Findings</h2><table><thead><tr><th></th><th class="number">count</th><th>kind</th><th>what it means</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        '<p class="faint">In the pictures below, hatched pixels (black without an image) are ignored; magenta '
        "is an id that no class has.</p>"
    )


def _title(group: FindingGroup) -> str:
    return escape(group.kind.name.replace("_", " "))


def _details(group: FindingGroup, picture: Picture) -> str:
    shown = group.listed[:_FINDINGS_SHOWN]
    items = "".join(f"<li>{_sentence(finding)}</li>" for finding in shown)
    more = group.count - len(shown)
    rest = f'<p class="faint">and {more:,} more, in report.json</p>' if more else ""
    shots = "".join(_shots(finding, picture) for finding in shown[: _PICTURED[group.kind.severity]])
    return (
        f'<h3 id="{group.kind.name}"><span class="tag {group.kind.severity}">{group.kind.severity}</span> '
        f'{_title(group)} <span class="faint">({group.count:,})</span></h3>'
        f"<p>{escape(group.kind.meaning)} <b>Way out:</b> {escape(group.kind.way_out)}</p>"
        f'<ul class="files">{items}</ul>{rest}' + (f'<div class="shots">{shots}</div>' if shots else "")
    )


def _sentence(finding: Finding) -> str:
    detail = finding.detail if len(finding.detail) <= _TEXT_LENGTH else f"{finding.detail[:_TEXT_LENGTH]}…"
    return f'<span class="path">{escape(finding.path)}</span> {escape(detail)}'


def _shots(finding: Finding, picture: Picture) -> str:
    """Pictures of a finding; those of one finding, as of duplicates, stand together in a frame."""
    taken = [(ref, picture(ref)) for ref in finding.samples[:_SAMPLES_PICTURED]]
    figures = [_figure(data, ref.path) for ref, data in taken if data]
    if len(finding.samples) > 1 and figures:
        return f'<div class="together">{"".join(figures)}</div>'
    return "".join(figures)


def _figure(data: bytes, caption: str) -> str:
    return f'<figure><img alt="" src="{inline_image(data, "jpeg")}"><figcaption>{escape(caption)}</figcaption></figure>'


def _zero(diagnosis: Diagnosis) -> str:
    zero = diagnosis.zero_label
    if zero is None:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in zero.evidence)
    looks = {"class": "looks like a class", "unlabelled": "looks like “unlabelled”", "unclear": "is not clear"}
    return f'<h2>Raw id 0 {looks[zero.looks_like]}</h2><ul class="files">{items}</ul>'


def _preview(png: bytes | None) -> str:
    if png is None:
        return ""
    return (
        "<h2>What the model will see</h2><p>The first crops of training, after scaling, cropping, flipping and "
        "distortion: plain, and under the mask. Hatched pixels are ignored.</p>"
        f'<img class="sheet" alt="contact sheet of augmented crops" src="{inline_image(png, "png")}">'
    )
