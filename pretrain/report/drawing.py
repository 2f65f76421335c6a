"""How the report's pictures are drawn: colours of light and dark pages, and the PNG or JPEG of a drawing."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pretrain.report.class_names import Label

_COLOURS = 96  # of a chart, which has few: a third of the bytes


@dataclass(frozen=True)
class Theme:
    """The colours a figure is drawn in."""

    page: str
    text: str
    faint: str
    accent: str
    second: str
    right: str = "#2f9e5f"
    wrong: str = "#d9534f"


LIGHT = Theme(page="#ffffff", text="#24303c", faint="#d9dfe6", accent="#2563eb", second="#e07b12")
DARK = Theme(page="#171c24", text="#d5dce5", faint="#333d4a", accent="#6aa2ff", second="#f0a04b")


def write_in_their_fonts(texts: Sequence[Text], labels: Sequence[Label]) -> None:
    """Set each text's fonts to those that have its label's characters."""
    for text, label in zip(texts, labels, strict=True):
        text.set_fontfamily(list(label.families))


def finish(axes: Axes, label: str, theme: Theme) -> None:
    """Name the vertical axis, draw the grid, and a legend if lines have names."""
    axes.set_ylabel(label)
    axes.grid(color=theme.faint, linewidth=0.7)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def chart(draw: Callable[[Figure], None], inches: tuple[float, float], theme: Theme) -> bytes:
    """As `png`, of a drawing of lines, areas and letters, in a few colours."""
    with Image.open(io.BytesIO(png(draw, inches, theme))) as drawn:
        reduced = drawn.convert("RGB").quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def png(draw: Callable[[Figure], None], inches: tuple[float, float], theme: Theme, dpi: int = 150) -> bytes:
    """The PNG that `draw` makes of an empty figure of this width and height in a theme's colours."""
    texts = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    lines = ("axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(texts, theme.text) | dict.fromkeys(lines, theme.faint)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
    style |= {"font.size": 10, "lines.linewidth": 1.8, "agg.path.chunksize": 10000}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, facecolor=theme.page)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
        FigureCanvasAgg(figure)
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
