"""Words beside the points of a chart, placed so that they cover neither points nor each other."""

from collections.abc import Mapping, Sequence
from math import hypot

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_RADIUS = 5  # of a point, in points
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_OFFSETS = [(x * far, y * far) for far in (7, 13, 20, 28, 38, 50) for x, y in _DIRECTIONS]
"""In points, the closest first."""
_WITH_LEADER = 14
"""A label further off than this is joined to its point by a line."""


def place_labels(figure: Figure, axes: Axes, texts: Mapping[tuple[float, float], Sequence[str]]) -> None:
    """Write the first of each point's texts that finds room, at the closest place; none where there is no room.

    `texts` is by place in data coordinates. Places are found in pixels: the layout must be final.
    """
    FigureCanvasAgg(figure)  # measures words
    frame = axes.get_window_extent()
    radius = _RADIUS * figure.dpi / 72
    dots = axes.transData.transform([*texts])
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in dots]
    for point, alternatives in texts.items():
        for text, offset in [(text, offset) for text in alternatives for offset in _OFFSETS]:
            note = _annotate(axes, text, point, offset)
            box = note.get_window_extent()
            if _is_inside(box, frame) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if hypot(*offset) > _WITH_LEADER:
                    line = {"arrowstyle": "-", "color": "#6a7178", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
                    axes.annotate("", point, offset, textcoords="offset points", arrowprops=line)
                break
            note.remove()


def _annotate(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float]) -> Annotation:
    across = "left" if offset[0] > 0 else "right" if offset[0] < 0 else "center"
    up = "bottom" if offset[1] > 0 else "top" if offset[1] < 0 else "center"
    note = axes.annotate(text, point, offset, textcoords="offset points", ha=across, va=up, fontsize=8.5)
    note.set_path_effects([withStroke(linewidth=3, foreground="white")])
    return note


def _is_inside(box: Bbox, frame: Bbox) -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
