"""The page that compares runs: results and their differences, curves over each other, settings that differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from pretrain.report import html
from pretrain.report.class_names import file_label
from pretrain.report.curves import compared_figure
from pretrain.report.results import LABELS, NONE, comparable_pair, cost_of, fused_words, percent, shares_of
from pretrain.report.run_data import Evaluation, RunFiles
from pretrain.report.run_page import described
from pretrain.report.settings_shown import differing_settings
from sharding.pages.html import table, text_of

_NAME = 34  # columns of a run's name in a figure


def comparison_page(runs: Sequence[RunFiles], pages: Sequence[str], album: html.Album) -> Iterator[str]:
    """The pieces of the comparing page, as HTML; `pages`: the runs' own, relative to this one."""
    names, whole = run_names(runs), [run.name for run in runs]
    yield "<h1>Runs compared</h1>"
    links = (f'<a href="{quote(page)}">{text_of(name)}</a>' for page, name in zip(pages, whole, strict=True))
    yield f"<nav>{''.join(links)}</nav>"
    yield html.card("Results", _results(runs, names))
    yield html.card("Differences in video@1", *_differences(runs, names))
    yield from _curves(runs, names, album)
    yield html.card("Networks and training", _networks(runs, names))
    yield _settings(runs, names)


def run_names(runs: Sequence[RunFiles]) -> list[str]:
    """The runs' names without what long ones begin or end with alike, and with numbers where several have the same."""
    names = _without_what_is_common([run.name for run in runs])
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{number} {name}" for number, name in enumerate(names, start=1)]


def _without_what_is_common(names: list[str]) -> list[str]:
    if max(map(len, names)) <= _NAME:
        return names
    words = [re.split(r"(?<=[-_. ])", name) for name in names]
    fewest = min(map(len, words))  # of which one stays, at least
    head = next((place for place in range(fewest - 1) if len({each[place] for each in words}) > 1), fewest - 1)
    rest = fewest - head - 1
    tail = next((place for place in range(rest) if len({each[-1 - place] for each in words}) > 1), rest)
    return [("…" if head else "") + "".join(each[head : len(each) - tail]) + ("…" if tail else "") for each in words]


def _results(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    heads = ("run", "evaluated on", "video@1", "95 % interval", "video@5", "clip@1", "mean class", "videos")
    return table(heads, result_rows(runs, names), frozenset(range(2, 8)))


def result_rows(runs: Sequence[RunFiles], names: Sequence[str]) -> list[list[str]]:
    """The cells of every evaluation, the newest of a run first, and below it those of what it was fused to."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        for evaluation in run.evaluations[::-1]:
            where, videos = _where(evaluation), f"{evaluation.summary.get('videos', 0):,}"
            rows.append([name, where, *_scores(evaluation.summary), videos])
            if fused := evaluation.summary.get("fused"):
                other = PurePosixPath(fused.get("run") or "another run").name
                rows.append([name, f"{where}; fused with {other}: {fused_words(fused)}", *_scores(fused), videos])
        if not run.evaluations:
            rows.append([name, "not evaluated", *[NONE] * 6])
    return rows


def _scores(summary: Mapping[str, Any]) -> list[str]:
    shares = {each.label: each for each in shares_of(summary)}
    cells = [percent(shares[label].share) if label in shares else NONE for label in LABELS.values()]
    video1 = shares.get(LABELS["video1"])
    cells.insert(1, video1.interval_text if video1 else NONE)
    return cells


def _where(evaluation: Evaluation) -> str:
    """The store, split and protocol of an evaluation, in a few words."""
    summary = evaluation.summary
    clips = f"{summary['clips_a_video']} clips a video" if summary.get("clips_a_video") else None
    protocol = (summary.get("protocol") or {}).get("words") or clips
    if not summary.get("store") or not protocol:
        return evaluation.name
    return f"{PurePosixPath(summary['store']).name} {summary.get('split', '')}, {protocol}"


def _networks(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    heads = ("run", "network", "parameters", "GMACs a clip", "steps", "clips/s", "training")
    costs = [cost_of(run) for run in runs]
    rows = [
        (name, described(run), cost.parameters, cost.gmacs, cost.steps, cost.rate, cost.time)
        for name, run, cost in zip(names, runs, costs, strict=True)
    ]
    return table(heads, rows, frozenset(range(2, 7)))


def _differences(runs: Sequence[RunFiles], names: Sequence[str]) -> Iterator[str]:
    rows = []
    for run, name in zip(runs[1:], names[1:], strict=True):
        pair = comparable_pair(runs[0], run)
        if isinstance(pair, str):
            rows.append([name, NONE, NONE, NONE, pair, NONE])
            continue
        evaluation, _, result = pair
        low, high = map(_points, result.interval)
        rows.append(
            [name, _points(result.share), f"{low} to {high}", f"{result.videos:,}", result.verdict, _where(evaluation)]
        )
    yield html.soft(
        f"Against {names[0]}, in percentage points, on the videos that both scored by the same protocol. Better or "
        "worse: the 95 % interval of the difference (paired, Newcombe 1998) does not hold 0. It covers which videos "
        "were drawn, not other seeds of training."
    )
    heads = ("run", "difference", "95 % interval", "videos", "what that says", "evaluated on")
    yield table(heads, rows, frozenset({1, 2, 3}))


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


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
    return html.card(f"Settings that differ ({len(rows)})", html.settings_table(("setting", *names), lines))
