"""A report's figures, drawn with matplotlib: each function gives the bytes of one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text

from pretrain.report.class_names import ClassLabels, Label
from pretrain.report.run_data import ClipThumbnails, Evaluation, RunFiles, series
from pretrain.scoring.confusion import confident_errors
from sharding.pages.fonts import LEFT_TO_RIGHT, right_to_left

NAMED = 30  # the most classes a figure names
SHOWN = 24  # the most clips of a contact sheet
COUNTED = 20  # the most classes whose confusion matrix has its counts written in


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
# A contact sheet is large, so it is drawn once, in colours that can be read on both pages.
BOTH = Theme(page="none", text="#7d8793", faint="#7d8793", accent="#4b8bf5", second="#e07b12")


def loss_figure(run: RunFiles, theme: Theme) -> bytes:
    """Loss over steps, training (raw and smoothed) and validation, with the learning rate below it."""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _trained(top, run, "loss", theme)
        _validated(top, run, "loss", theme)
        _finish(top, "loss", theme)
        bottom.plot(series(run.train, "step"), series(run.train, "lr"), color=theme.accent)
        _finish(bottom, "learning rate", theme)
        bottom.set_xlabel("step")

    return png(draw, (6.4, 4.2), theme)


def accuracy_figure(run: RunFiles, theme: Theme) -> bytes:
    """Top-1 of the training clips and clip@1 of the validation clips over steps, in per cent."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _trained(axes, run, "top1", theme, scale=100)
        _validated(axes, run, "clip1", theme, scale=100)
        axes.set_ylim(0, 102)
        _finish(axes, "top-1 of clips, %", theme)
        axes.set_xlabel("step")

    return png(draw, (6.4, 4.2), theme)


def confusion_figure(counts: np.ndarray, names: Sequence[Label], theme: Theme, others: np.ndarray) -> bytes:
    """A confusion matrix, coloured by share of the true class, with names, and counts if they fit.

    others: of each true class, the videos that were taken for a class that is not shown.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True) + others[:, None], 1)
    side = 3.2 + 0.3 * len(names)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ramp = LinearSegmentedColormap.from_list("share", [theme.page, theme.accent])
        image = axes.imshow(shares, cmap=ramp, vmin=0, vmax=1, interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
        bar.outline.set_edgecolor(theme.faint)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        ticks, labels = range(len(names)), [name.text for name in names]
        axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, labels)
        write_in_their_fonts(axes.get_xticklabels(), names)
        write_in_their_fonts(axes.get_yticklabels(), names)
        if len(names) <= COUNTED:
            for truth, taken in np.argwhere(counts):
                colour = theme.page if shares[truth, taken] > 0.55 else theme.text
                axes.text(taken, truth, str(counts[truth, taken]), ha="center", va="center", color=colour)
        axes.tick_params(length=0)

    return png(draw, (side + 1.4, side), theme)


def per_class_figure(names: Sequence[Label], accuracies: Sequence[float], theme: Theme) -> bytes:
    """Video@1 of every class in per cent, best first: a named bar each, or a curve if they are many."""
    order = sorted(range(len(names)), key=lambda place: -accuracies[place])
    heights = [100 * accuracies[place] for place in order]
    named = len(names) <= NAMED

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if named:
            bars = axes.barh(range(len(order)), heights, color=theme.accent, height=0.66)
            axes.bar_label(bars, fmt="%.0f", padding=4, color=theme.text, fontsize=9)
            labels = [names[place] for place in order]
            axes.set_yticks(range(len(order)), [label.text for label in labels])
            write_in_their_fonts(axes.get_yticklabels(), labels)
            axes.set_ylim(len(order) - 0.4, -0.6)
            axes.set_xlim(0, 108)
            axes.set_xlabel("video@1, %")
            axes.tick_params(axis="y", length=0)
        else:
            axes.fill_between(range(len(order)), heights, color=theme.accent, alpha=0.25)
            axes.plot(heights, color=theme.accent)
            axes.set_xlabel("classes, best first")
            axes.set_ylabel("video@1, %")
            axes.set_ylim(0, 102)
        axes.grid(axis="x" if named else "y", color=theme.faint, linewidth=0.7)
        axes.set_axisbelow(True)

    return png(draw, (6.4, 1.2 + 0.3 * len(order) if named else 4.2), theme)


def in_sheet(evaluation: Evaluation, clips: ClipThumbnails) -> list[int]:
    """Which of the kept clips the contact sheet shows: errors first, the most confident at the top, then others."""
    truths, predictions = (
        [values[row] for row in clips.rows] for values in (evaluation.truths, evaluation.predictions)
    )
    scores = [evaluation.scores[row] for row in clips.rows]
    errors = confident_errors(predictions, scores, [(truth,) for truth in truths])[:SHOWN]
    others = [place for place in range(len(clips.rows)) if truths[place] == predictions[place]]
    count = min(len(others), SHOWN - len(errors))
    return errors + [others[number * len(others) // count] for number in range(count)]


def contact_sheet(evaluation: Evaluation, clips: ClipThumbnails, labels: ClassLabels, theme: Theme = BOTH) -> bytes:
    """A row of frames a clip, with its class and what it was taken for."""
    shown = [(clips.frames[place], clips.rows[place]) for place in in_sheet(evaluation, clips)]
    frames, height, width = clips.frames.shape[1:4]
    across = min(frames, 8)
    columns = 2 if len(shown) > 1 and across <= 8 else 1
    rows = math.ceil(len(shown) / columns)
    tall = 5.6 * height / (width * across) + 0.34  # inches: the strip and its caption

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (pictures, row) in zip(grid.flat, shown, strict=False):
            axes.imshow(_strip(pictures, across), interpolation="antialiased", aspect="equal")
            _caption(axes, evaluation, row, labels, theme)

    return png(draw, (5.8 * columns, tall * rows), theme, dpi=130)


def _strip(pictures: np.ndarray, across: int) -> np.ndarray:
    """F H W 3 → H (F·W) 3 of `across` frames spread over the clip, with transparent gaps (RGBA)."""
    chosen = pictures[np.linspace(0, len(pictures) - 1, across).round().astype(int)]
    opaque = np.concatenate([chosen, np.full_like(chosen[..., :1], 255)], axis=-1)
    gap = np.zeros((chosen.shape[1], max(1, chosen.shape[2] // 40), 4), dtype=np.uint8)
    parts = [part for picture in opaque for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _caption(axes: Axes, evaluation: Evaluation, row: int, labels: ClassLabels, theme: Theme) -> None:
    truth, taken = evaluation.truths[row], evaluation.predictions[row]
    named = labels[evaluation.classes[truth]] if truth >= 0 else Label("no label")
    predicted = labels[evaluation.classes[taken]]
    # Between names that run from right to left, marks keep the order of what is around them.
    mark = LEFT_TO_RIGHT if right_to_left(named.text + predicted.text) else ""
    if truth == taken:
        text, colour = f"{mark}✓ {named.text}{mark}", theme.right
    else:
        text, colour = f"{mark}✗ {named.text}{mark} → {predicted.text}{mark}", theme.wrong
    text += f"  {100 * evaluation.scores[row]:.0f} %"
    title = axes.set_title(text, loc="left", color=colour, fontsize=9, fontweight="bold", pad=3)
    title.set_fontfamily(list(dict.fromkeys((*named.families, *predicted.families))))


def write_in_their_fonts(texts: Sequence[Text], labels: Sequence[Label]) -> None:
    """Set each text's fonts to those that have its label's characters."""
    for text, label in zip(texts, labels, strict=True):
        text.set_fontfamily(list(label.families))


def smoothed(values: np.ndarray, span: float) -> np.ndarray:
    """An exponential moving average of about `span` values, unbiased at its start; NaN takes no part."""
    keep = 1 - 1 / max(span, 1.0)
    total = weight = 0.0
    averages = np.full(len(values), math.nan)
    for place, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        if weight:
            averages[place] = total / weight
    return averages


def _trained(axes: Axes, run: RunFiles, name: str, theme: Theme, scale: float = 1) -> None:
    steps, values = series(run.train, "step"), scale * series(run.train, name)
    axes.plot(steps, values, color=theme.accent, alpha=0.28, linewidth=1)
    axes.plot(steps, smoothed(values, len(values) / 40), color=theme.accent, label="training")


def _validated(axes: Axes, run: RunFiles, name: str, theme: Theme, scale: float = 1) -> None:
    if run.validation:
        steps, values = series(run.validation, "step"), scale * series(run.validation, name)
        axes.plot(steps, values, color=theme.second, marker="o", markersize=4.5, label="validation")


def _finish(axes: Axes, label: str, theme: Theme) -> None:
    axes.set_ylabel(label)
    axes.grid(color=theme.faint, linewidth=0.7)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


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
