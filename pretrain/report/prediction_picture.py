"""Draws a prediction: frames of the clips that were looked at, and the likeliest classes as bars beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from pretrain.evaluation.predict import Prediction
from pretrain.report.class_names import ClassLabels, file_label
from pretrain.report.drawing import LIGHT, Theme, png, write_in_their_fonts
from sharding.base.atomic import atomic_write_bytes
from sharding.base.user_paths import writing

_FRAME_INCHES = 0.78  # height of a frame
_BARS_INCHES = 3.6  # width of all bars
_BAR_INCHES = 0.42  # height of one
_TITLE_COLUMNS = 70


def write_prediction_picture(prediction: Prediction, top: int, file: Path) -> None:
    """Write the picture of a prediction that has a sheet, a PNG; a file that was there is replaced.

    Raises UserError where it cannot be written.
    """
    with writing(file.parent, str(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, prediction_picture(prediction, top))


def prediction_picture(prediction: Prediction, top: int, theme: Theme = LIGHT) -> bytes:
    """A PNG: a row of frames for each clip shown, with the second at which it begins, and bars of the `top` classes."""
    sheet = prediction.sheet
    assert sheet is not None, "predict with sheets"
    rows, frames, height, width = sheet.shape[:4]
    likeliest = prediction.top(top)
    labels = ClassLabels(prediction.classes, {name for name, _ in likeliest})
    strip = _FRAME_INCHES * frames * width / height
    inches = strip + _BARS_INCHES + 1.6, max(rows * (_FRAME_INCHES + 0.06), _BAR_INCHES * len(likeliest)) + 0.55

    def draw(figure: Figure) -> None:
        grid = GridSpec(1, 2, figure, width_ratios=(strip, _BARS_INCHES))
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        gap = max(1, height // 14)
        left.imshow(_grid_of(sheet, gap), interpolation="antialiased", aspect="equal")
        middles = [number * (height + gap) + height / 2 for number in range(rows)]
        left.set_yticks(middles, [f"{seconds:.1f} s" for seconds in prediction.sheet_seconds])
        left.set_xticks([])
        left.tick_params(length=0, labelcolor=theme.text)
        left.spines[:].set_visible(False)
        left.set_anchor("NW")
        name = file_label(prediction.video.rstrip("/").rpartition("/")[2], _TITLE_COLUMNS)
        title = left.set_title(f"{name.text} · {_clips_words(prediction)}", loc="left", fontsize=10, fontweight="bold")
        title.set_fontfamily(list(name.families))
        places = range(len(likeliest))
        shares = [100 * probability for _, probability in likeliest]
        bars = right.barh(places, shares, color=[theme.accent, *[theme.second] * (len(likeliest) - 1)], height=0.62)
        right.bar_label(bars, [_percent(share) for share in shares], padding=4, color=theme.text, fontsize=9)
        right.set_yticks(places, [labels[name].text for name, _ in likeliest])
        write_in_their_fonts(right.get_yticklabels(), [labels[name] for name, _ in likeliest])
        right.set_ylim(inches[1] / _BAR_INCHES - 0.6, -0.6)
        right.set_xlim(0, 118)
        right.set_xticks([])
        right.spines[:].set_visible(False)
        right.tick_params(axis="y", length=0)
        right.set_title("probability, %", loc="left", fontsize=10)

    return png(draw, inches, theme)


def _grid_of(sheet: np.ndarray, gap: int) -> np.ndarray:
    """R F H W 3 → one RGBA picture, rows below each other and frames beside each other, with clear gaps between."""
    rows, frames, height, width = sheet.shape[:4]
    canvas = np.zeros((rows * (height + gap) - gap, frames * (width + gap) - gap, 4), np.uint8)
    for row in range(rows):
        for frame in range(frames):
            top, left = row * (height + gap), frame * (width + gap)
            canvas[top : top + height, left : left + width, :3] = sheet[row, frame]
            canvas[top : top + height, left : left + width, 3] = 255
    return canvas


def _clips_words(prediction: Prediction) -> str:
    shown, all_ = len(prediction.sheet_seconds), prediction.clips
    if all_ == 1:
        return "1 clip"
    return f"{all_} clips" if shown == all_ else f"{shown} of {all_} clips"


def _percent(share: float) -> str:
    return f"{share:.1f}" if share >= 0.1 else "< 0.1"
