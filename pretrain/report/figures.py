"""The pictures of an evaluation: confusion matrix, accuracy by class, reliability as PNGs, clips as JPEGs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pretrain.report.class_names import Label
from pretrain.report.drawing import Theme, chart, finish, write_in_their_fonts
from pretrain.report.run_data import ClipThumbnails, Evaluation
from pretrain.scoring.confusion import confident_errors

NAMED = 30  # the most classes a figure names
COUNTED = 20  # the most classes whose confusion matrix has its counts written in
SHOWN = 24  # the most clips of a page
_ACROSS = 6  # frames of a strip
_HEIGHT = 96  # of a strip, in pixels, at most
_WIDTH = 720
_QUALITY = 78
_GAP = (128, 136, 144)  # between frames: a grey for light and dark pages


def confusion_figure(counts: np.ndarray, names: Sequence[Label], theme: Theme, others: np.ndarray) -> bytes:
    """A confusion matrix, coloured by share of the true class, with names, and counts if they fit.

    others: of each true class, the videos that were taken for a class that is not shown.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True) + others[:, None], 1)
    many = len(names) > COUNTED
    side = 2.6 + (0.26 if many else 0.34) * len(names)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ramp = LinearSegmentedColormap.from_list("share", [theme.page, theme.accent])
        image = axes.imshow(shares, cmap=ramp, vmin=0, vmax=1, interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
        bar.outline.set_edgecolor(theme.faint)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        ticks, labels = range(len(names)), [name.text for name in names]
        axes.tick_params(labelsize=12 if many else 10)
        axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, labels)
        write_in_their_fonts(axes.get_xticklabels(), names)
        write_in_their_fonts(axes.get_yticklabels(), names)
        if len(names) <= COUNTED:
            for truth, taken in np.argwhere(counts):
                colour = theme.page if shares[truth, taken] > 0.55 else theme.text
                axes.text(taken, truth, str(counts[truth, taken]), ha="center", va="center", color=colour)
        axes.tick_params(length=0)

    return chart(draw, (side + 1.4, side), theme)


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

    return chart(draw, (6.4, 1.2 + 0.3 * len(order) if named else 4.2), theme)


def reliability_figure(bins: Sequence[Mapping[str, Any]], theme: Theme) -> bytes:
    """The share of videos that is right over their score, beside the line of a calibrated network; videos below it.

    `bins`: as `pretrain.scoring.calibration` gives them.
    """
    edges = [100 * bins[0]["low"], *(100 * each["high"] for each in bins)]
    full = [each for each in bins if each["videos"]]

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot((0, 100), (0, 100), color=theme.text, alpha=0.5, linestyle="--", linewidth=1.2, label="calibrated")
        scores, right = ([100 * each[name] for each in full] for name in ("confidence", "accuracy"))
        top.plot(scores, right, color=theme.accent, marker="o", markersize=5, label="measured")
        top.set_ylim(0, 102)
        finish(top, "videos that are right, %", theme)
        bottom.stairs([each["videos"] for each in bins], edges, fill=True, color=theme.accent, alpha=0.6)
        bottom.set_xlim(0, 100)
        finish(bottom, "videos", theme)
        bottom.set_xlabel("score of the top class, %")

    return chart(draw, (6.4, 4.2), theme)


def clips_shown(evaluation: Evaluation, clips: ClipThumbnails) -> list[int]:
    """Which of the kept clips the page shows: errors first, the most confident at the top, then others."""
    truths, predictions = (
        [values[row] for row in clips.rows] for values in (evaluation.truths, evaluation.predictions)
    )
    scores = [evaluation.scores[row] for row in clips.rows]
    errors = confident_errors(predictions, scores, [(truth,) for truth in truths])[:SHOWN]
    others = [place for place in range(len(clips.rows)) if truths[place] == predictions[place]]
    count = min(len(others), SHOWN - len(errors))
    return errors + [others[number * len(others) // count] for number in range(count)]


def strip_jpeg(frames: NDArray[np.uint8]) -> bytes:
    """A JPEG of frames side by side, spread over the clip; `frames`: uint8 F H W 3, RGB."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _ACROSS)).round().astype(int)]
    gap = np.full((chosen.shape[1], max(1, chosen.shape[2] // 40), 3), _GAP, np.uint8)
    parts = [part for picture in chosen for part in (picture, gap)][:-1]
    strip = Image.fromarray(np.concatenate(parts, axis=1))
    strip.thumbnail((_WIDTH, _HEIGHT))
    buffer = io.BytesIO()
    strip.save(buffer, format="jpeg", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
