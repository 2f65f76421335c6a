"""The page that compares runs: results and their differences, curves over each other, settings that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import quote

from pretrain.report import html
from pretrain.report.class_names import file_label
from pretrain.report.curves import compared_figure
from pretrain.report.results import LABELS, comparable_pair, interval_text, percent
from pretrain.report.run_data import Evaluation, RunFiles, seconds_at
from pretrain.report.run_page import described
from pretrain.report.settings_shown import differing_settings
from sharding.base.printable import duration
from sharding.pages.html import table, text_of

_NAME = 34  # columns of a run's name in a figure


def comparison_page(runs: Sequence[RunFiles], pages: Sequence[str], album: html.Album) -> Iterator[str]:
    """The pieces of the comparing page, as HTML; `pages`: the runs' own, relative to this one."""
    names = run_names(runs)
    yield "<h1>Runs compared</h1>"
    links = (f'<a href="{quote(page)}">{text_of(name)}</a>' for page, name in zip(pages, names, strict=True))
    yield f"<nav>{''.join(links)}</nav>"
    yield html.card("Results", *_results(runs, names))
    yield html.card("Differences in video@1", *_differences(runs, names))
    yield from _curves(runs, names, album)
    yield _settings(runs, names)


def run_names(runs: Sequence[RunFiles]) -> list[str]:
    """The runs' names, with their numbers where several have the same."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{number} {run.name}" for number, run in enumerate(runs, start=1)]


def _results(runs: Sequence[RunFiles], names: Sequence[str]) -> Iterator[str]:
    heads = (
        "run", "network", "evaluation", *(f(label) for label in LABELS.values() for f in (str, lambda _: "95 %")),
        "videos", "steps", "clips/s", "training", "parameters", "GMACs",
    )  # fmt: skip
    rows = [
        [name, described(run), *_scores(evaluation), *_cost(run)]
        for name, run in zip(names, runs, strict=True)
        for evaluation in (run.evaluations[::-1] or [None])
    ]
    empty = {column for column in range(3, len(heads)) if all(row[column] == "–" for row in rows)}
    kept = [column for column in range(len(heads)) if column not in empty]
    numbers = frozenset(place for place, column in enumerate(kept) if column > 2)
    yield table([heads[column] for column in kept], [[row[column] for column in kept] for row in rows], numbers)


def _scores(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return ["–"] * (2 + 2 * len(LABELS))
    summary = evaluation.summary
    intervals = summary.get("intervals") or {}
    cells = [evaluation.name]
    for name in LABELS:
        cells.append("–" if summary.get(name) is None else percent(summary[name]))
        cells.append(interval_text(intervals.get(name)))
    return [*cells, f"{summary.get('videos', 0):,}"]


def _cost(run: RunFiles) -> list[str]:
    parameters, gmacs = (run.settings.get(f"derived.{name}") for name in ("parameters", "gmacs_per_clip"))
    size = [f"{parameters / 1e6:.3g} M" if parameters else "–", f"{gmacs:.3g}" if gmacs else "–"]
    if not run.train:
        return ["–", "–", "–", *size]
    last = run.train[-1]
    seconds = float(seconds_at(run.train, last["step"]))
    rate = f"{last['samples'] / seconds:,.0f}" if seconds and last.get("samples") else "–"
    return [f"{last['step']:,}", rate, duration(seconds) if seconds else "–", *size]


def _differences(runs: Sequence[RunFiles], names: Sequence[str]) -> Iterator[str]:
    first, rows = runs[0], []
    for run, name in zip(runs[1:], names[1:], strict=True):
        pair = comparable_pair(first, run)
        if isinstance(pair, str):
            rows.append([name, "–", "–", "–", pair])
            continue
        one, _, result = pair
        low, high = result.interval
        interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
        verdict = f"{result.verdict} ({PurePosixPath(one.name)})"
        rows.append([name, f"{100 * result.share:+.1f}", interval, f"{result.videos:,}", verdict])
    yield html.soft(
        f"Against {names[0]}, in percentage points, on the videos that both scored by the same protocol. Better or "
        "worse: the 95 % interval of the difference (paired, Newcombe 1998) does not hold 0. It covers which videos "
        "were drawn, not other seeds of training."
    )
    heads = ("run", "difference", "95 % interval", "videos", "what that says")
    yield table(heads, rows, frozenset({1, 2, 3}))


def _curves(runs: Sequence[RunFiles], names: Sequence[str], album: html.Album) -> Iterator[str]:
    trained = [(run, name) for run, name in zip(runs, names, strict=True) if run.train]
    if not trained:
        yield html.note("None of these runs has written a training step.")
        return
    labels = [file_label(name, _NAME) for _, name in trained]
    drawn = [run for run, _ in trained]
    steps = album.picture(
        "curves-steps", "loss and accuracy over steps", lambda theme: compared_figure(drawn, labels, "steps", theme)
    )
    yield html.card("Over steps", steps)
    time = album.picture(
        "curves-time", "loss and accuracy over time", lambda theme: compared_figure(drawn, labels, "time", theme)
    )
    yield html.card("Over training time, without validation", time)


def _settings(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    rows = differing_settings(runs)
    if not rows:
        return html.card("Settings", "<p>The runs have the same settings.</p>")
    lines = [(path, *values) for path, values in rows]
    return html.card(f"Settings that differ ({len(rows)})", table(("setting", *names), lines))
