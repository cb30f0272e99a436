"""What all reports share: one HTML page that needs nothing else, without scripts or network, and its look."""

import base64
from collections.abc import Iterable
from html import escape

_CSS = """
:root { color-scheme: light; --ink: #23272b; --faint: #6a7178; --line: #e1e3e0; --paper: #fff;
  --error: #b3261e; --warning: #9a6200; --note: #2f5d86; --ok: #2e6b3a; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 28px 64px; max-width: 1200px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 44px 0 10px; }
h3 { font-size: 16px; margin: 30px 0 2px; } p { margin: 4px 0; max-width: 112ch; }
a { color: inherit; } .faint { color: var(--faint); }
.path, code { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.verdict { max-width: none; margin: 18px 0 22px; padding: 12px 16px; border-left: 5px solid; border-radius: 4px;
  font-size: 17px; }
.verdict.error { border-color: var(--error); background: #fbeceb; }
.verdict.warning { border-color: var(--warning); background: #fdf4e3; }
.verdict.ok { border-color: var(--ok); background: #ecf5ee; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 6px 12px 6px 0; text-align: left; vertical-align: top; }
th { font-weight: 600; font-size: 13px; color: var(--faint); } tbody tr { border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tag { display: inline-block; min-width: 66px; padding: 0 8px; border-radius: 10px; color: #fff; font-size: 12px;
  text-align: center; } .tag.error { background: var(--error); } .tag.warning { background: var(--warning); }
.tag.note { background: var(--note); } .tag.ok { background: var(--ok); }
"""


def document(title: str, parts: Iterable[str], *, css: str = "") -> str:
    """The page. `parts` are HTML, empty ones are left out; `title` is plain text; `css` adds to the shared look."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}{css}</style></head>\n'
        f"<body>{chr(10).join(part for part in parts if part)}</body></html>\n"
    )


def inline_image(data: bytes, kind: str) -> str:
    """An image's bytes as an address; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def number_cell(text: str) -> str:
    """A cell of digits that stand below each other."""
    return f'<td class="number">{text}</td>'
