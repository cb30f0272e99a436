"""The two charts of the doctor's page, as HTML and inline SVG: pixels per class, and sizes of images."""

from html import escape
from math import sqrt

from vitrail.data.doctor.diagnosis import Diagnosis

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 380, 56, 44
_MAX_RADIUS, _MIN_RADIUS = 22, 2.5
_DOTS = 2_000


def class_table(diagnosis: Diagnosis) -> str:
    """A row per class: its colour, and per split a bar of its share of labelled pixels and the images it is in."""
    subject, splits = diagnosis.subject, diagnosis.splits
    totals = {name: max(1, sum(split.class_pixels)) for name, split in splits.items()}
    shares = {name: [n / totals[name] for n in split.class_pixels] for name, split in splits.items()}
    top = max((share for values in shares.values() for share in values), default=0) or 1
    head = "".join(f'<th colspan="2">{escape(name)}</th><th class="number">images</th>' for name in splits)
    rows = []
    for index, name in enumerate(subject.classes):
        colour = "#{:02x}{:02x}{:02x}".format(*subject.palette[index])
        cells = "".join(
            _bar(shares[split][index], top, colour) + f'<td class="number">{summary.class_images[index]:,}</td>'
            for split, summary in splits.items()
        )
        rows.append(
            f'<tr><td class="number">{index + subject.raw_offset}</td>'
            f'<td><span class="swatch" style="background:{colour}"></span> {escape(name)}</td>{cells}</tr>'
        )
    return (
        '<p class="faint">Share of labelled pixels; lengths of bars grow with its square root, so that rare classes '
        f'show. Images: how many masks have the class.</p><table class="classes"><thead><tr><th class="number">id</th>'
        f"<th>class</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def size_chart(diagnosis: Diagnosis) -> str:
    """Width against height of all images, larger dots for more images, and the extremes in words."""
    sizes = diagnosis.all_sizes
    if not sizes:
        return "<p>No image could be read.</p>"
    lines = []
    for name, split in diagnosis.splits.items():
        if split.sizes is not None:
            low, mid, high = (
                "x".join(f"{side:g}" for side in size)
                for size in (
                    split.sizes.min_width_height,
                    split.sizes.median_width_height,
                    split.sizes.max_width_height,
                )
            )
            common = ", ".join(f"{w}x{h} ({count:,})" for w, h, count in split.sizes.common[:5])
            lines.append(
                f"<li>{escape(name)}: width x height from {low} over a median of {mid} to {high}, each side by itself; "
                f"most common {common}</li>"
            )
    words = f'<ul class="files">{"".join(lines)}</ul>'
    return words if len(sizes) == 1 else words + _scatter(sizes[:_DOTS])


def _bar(share: float, top: float, colour: str) -> str:
    width = 100 * sqrt(share / top)
    inner = f'<div style="width:{width:.1f}%;background:{colour}"></div>' if share else ""
    text = f"{share:.2%}" if share else '<span class="faint">never</span>'
    return f'<td><div class="bar">{inner}</div></td><td class="number">{text}</td>'


def _scatter(sizes: tuple[tuple[int, int, int], ...]) -> str:
    right, top = max(size[0] for size in sizes), max(size[1] for size in sizes)
    most = max(size[2] for size in sizes)
    across, up = (_WIDTH - _LEFT - _MAX_RADIUS) / right, (_HEIGHT - _BOTTOM - _MAX_RADIUS) / top
    base = _HEIGHT - _BOTTOM
    dots = "".join(
        f'<circle cx="{_LEFT + w * across:.1f}" cy="{base - h * up:.1f}" '
        f'r="{max(_MIN_RADIUS, _MAX_RADIUS * sqrt(count / most)):.1f}"><title>{w}x{h}: {count:,}</title></circle>'
        for w, h, count in sizes
    )
    grid = "".join(
        f'<line x1="{_LEFT + value * across:.1f}" x2="{_LEFT + value * across:.1f}" y1="0" y2="{base}"/>'
        for value in _ticks(right)
    ) + "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{base - value * up:.1f}" y2="{base - value * up:.1f}"/>'
        for value in _ticks(top)
    )
    numbers = "".join(
        f'<text x="{_LEFT + value * across:.0f}" y="{base + 18}" text-anchor="middle">{value}</text>'
        for value in _ticks(right)
    ) + "".join(
        f'<text x="{_LEFT - 8}" y="{base - value * up + 4:.0f}" text-anchor="end">{value}</text>'
        for value in _ticks(top)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="width against height of images"><g stroke="#e1e3e0">{grid}</g>'
        f'<g font-size="12" fill="#6a7178">{numbers}'
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">width in pixels</text>'
        f'<text x="14" y="{base / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {base / 2})">height in pixels</text>'
        f'</g><g fill="#2f5d86" fill-opacity="0.45" stroke="#2f5d86">{dots}</g></svg>'
    )


def _ticks(top: int) -> list[int]:
    """Four to eight round numbers from 0 to `top`."""
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if top / (s * 10**e) <= 8)
    return list(range(0, top + 1, step))
