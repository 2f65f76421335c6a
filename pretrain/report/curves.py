"""The curves of training: loss and accuracy of one run, or of several over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretrain.report.class_names import Label
from pretrain.report.drawing import Theme, chart, finish, write_in_their_fonts
from pretrain.report.run_data import Event, RunFiles, seconds_at, series

_STYLES = ("-", "--", ":", "-.")  # of more runs than there are colours


def loss_figure(run: RunFiles, theme: Theme) -> bytes:
    """Loss over steps, training (raw and smoothed) and validation, with the learning rate below it."""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _trained(top, run, "loss", theme)
        _validated(top, run, "loss", theme)
        finish(top, "loss", theme)
        bottom.plot(series(run.train, "step"), series(run.train, "lr"), color=theme.accent)
        finish(bottom, "learning rate", theme)
        bottom.set_xlabel("step")

    return chart(draw, (6.4, 4.2), theme)


def accuracy_figure(run: RunFiles, theme: Theme) -> bytes:
    """Top-1 of the training clips and clip@1 of the validation clips over steps, in per cent."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _trained(axes, run, "top1", theme, scale=100)
        _validated(axes, run, "clip1", theme, scale=100)
        axes.set_ylim(0, 102)
        finish(axes, "top-1 of clips, %", theme)
        axes.set_xlabel("step")

    return chart(draw, (6.4, 4.2), theme)


def compared_figure(
    runs: Sequence[RunFiles], names: Sequence[Label], over: Literal["steps", "time"], theme: Theme
) -> bytes:
    """Training loss (smoothed), validation loss and validation clip@1 of several runs, over steps or training time."""
    lasts = [seconds_at(run.train, run.train[-1]["step"]) for run in runs if run.train]
    unit, seconds = ("hours", 3600.0) if max(lasts, default=0) > 7200 else ("minutes", 60.0)

    def along(run: RunFiles, events: list[Event]) -> np.ndarray:
        steps = series(events, "step")
        return steps if over == "steps" else seconds_at(run.train, steps) / seconds

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        for number, run in enumerate(runs):
            look = {"color": colormaps["tab10"](number % 10), "linestyle": _STYLES[number // 10 % len(_STYLES)]}
            trained, validated = along(run, run.train), along(run, run.validation)
            loss = smoothed(series(run.train, "loss"), len(run.train) / 40)
            alone = "o" if len(run.train) == 1 else ""  # which a line does not show
            panels[0].plot(trained, loss, label=names[number].text, marker=alone, **look)
            panels[1].plot(validated, series(run.validation, "loss"), marker="o", markersize=3.5, **look)
            panels[2].plot(validated, 100 * series(run.validation, "clip1"), marker="o", markersize=3.5, **look)
        for axes, label in zip(panels, ("training loss", "validation loss", "validation clip@1, %"), strict=True):
            finish(axes, label, theme)
            axes.set_xlabel("step" if over == "steps" else f"{unit} of training")
        lines, texts = panels[0].get_legend_handles_labels()
        if panels[0].get_legend():
            panels[0].get_legend().remove()
        legend = figure.legend(lines, texts, loc="outside upper left", ncols=min(len(runs), 3), frameon=False)
        write_in_their_fonts(legend.get_texts(), names)

    return chart(draw, (11.5, 4.2 + 0.22 * math.ceil(len(runs) / 3)), theme)


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
