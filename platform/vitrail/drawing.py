"""What the pictures of all reports share: colours, axes, legends, and how a figure becomes a PNG.

Colours are Okabe and Ito's, which colour-blind people can tell apart.
"""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, FAINT, GREY, _LINE = "#23272b", "#6a7178", "#a9afb4", "#e1e3e0"
WIDTH = 10.0  # inches; shown at about 1000 pixels, an inch is 100 of them and 10 points are 14
_LETTERS = 130  # of a legend, side by side
_DPI = 160


def as_png(figure: Figure) -> bytes:
    """1600 pixels wide on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()


def tidy(axes: Axes, xlabel: str) -> None:
    """A faint grid and no box around it."""
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9)


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the panels, where it covers nothing."""
    widths = [len(str(handle.get_label())) + 8 for handle in handles]  # in letters, with the symbol
    columns = len(handles) if sum(widths) <= _LETTERS else max(1, _LETTERS // max(widths))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def plain(text: str, width: int) -> str:
    """Wrapped, and without a meaning to matplotlib, which reads formulas between dollars."""
    return textwrap.fill(text, width).replace("$", r"\$")
