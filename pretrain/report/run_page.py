"""The page of one run: its results at the top, what they cost, its curves, each evaluation, and its settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pretrain.papers.match import Seen, hold_against
from pretrain.papers.trained import trained_of
from pretrain.report import curves, html
from pretrain.report.evaluation_page import evaluation_cards
from pretrain.report.results import NONE, SPACE, cost_of, fused_words, interval_text, percent, shares_of
from pretrain.report.run_data import Evaluation, RunFiles
from pretrain.report.settings_shown import shown_settings
from sharding.pages.html import figures, table, text_of


def run_page(run: RunFiles, album: html.Album) -> Iterator[str]:
    """The pieces of a run's page, as HTML; its figures become files of the album."""
    last = run.evaluations[-1] if run.evaluations else None
    yield f"<h1>{text_of(run.name)}</h1>"
    yield html.soft(described(run))
    if run.settings.get("expected"):
        expected = str(run.settings["expected"]).replace(" %", f"{SPACE}%")
        yield html.soft(f"Its recipe, {run.settings['recipe']}, says: {expected}")
    yield from _results(run, last)
    yield figures(_cost_tiles(run))
    if run.train:
        yield html.cards(_curves(run, album))
    else:
        yield html.note("No training step has been written yet.")
    if run.train and not run.validation:
        yield html.note("No validation was run during training, so the curves show training alone.")
    if last is not None:
        yield from evaluation_cards(last, album)
        yield html.card("What was evaluated", _origin(run, last))
    for evaluation in run.evaluations[:-1][::-1]:
        yield f"<h2>{text_of(evaluation.name)}</h2>"
        yield from _scored(run, evaluation)
        yield from evaluation_cards(evaluation, replace(album, prefix=f"{album.prefix}{evaluation.name}-"))
        yield html.card("What was evaluated", _origin(run, evaluation))
    yield from _settings(run)
    if run.unreadable:
        yield html.note(f"Lines of metrics.jsonl that could not be read and were left out: {run.unreadable}.")


def described(run: RunFiles) -> str:
    """A run's network and what it sees, in a line."""
    settings = run.settings
    name, depth, width = (settings.get(f"settings.model.{key}") for key in ("name", "depth", "width"))
    network = f"{name}-{depth}" if depth else name
    frames, crop, kind = (settings.get(f"settings.data.clip.{key}") for key in ("frames", "crop", "input"))
    parts = [
        network if name else None,
        f"width {width:g}" if isinstance(width, int | float) and width != 1 else None,
        f"{frames} frames of {crop}×{crop} pixels, {kind}" if frames and crop else None,
        f"on {Path(str(settings['settings.data.store'])).name}" if settings.get("settings.data.store") else None,
    ]
    return " · ".join(part for part in parts if part)


def _cost_tiles(run: RunFiles) -> list[tuple[str, str, str]]:
    """Tiles of the network's size, and of what its training took."""
    cost = cost_of(run)
    planned = run.settings.get("derived.steps")
    tiles = (
        (cost.parameters, "parameters"),
        (cost.gmacs, "GMACs a clip"),
        (cost.steps, f"steps of {planned:,}" if planned else "steps"),
        (cost.clips, "clips trained on"),
        (cost.rate, "clips a second"),
        (cost.time, "training, without validation"),
    )
    return [(value, label, "small") for value, label in tiles if value != NONE]


def _results(run: RunFiles, last: Evaluation | None) -> Iterator[str]:
    if last is not None:
        yield from _scored(run, last)
        return
    if run.validation and run.validation[-1].get("clip1") is not None:
        event = run.validation[-1]
        of = f"\n{event['videos']:,} videos" if event.get("videos") else ""
        yield figures([(percent(event["clip1"]), f"clip@1, last validation{of}", "main")])
    command = f"reelscale evaluate configs/demo-evaluate.yaml run={shlex.quote(str(run.path))}"
    yield html.note("This run has not been evaluated yet. To evaluate it:", command)


def _scored(run: RunFiles, evaluation: Evaluation) -> Iterator[str]:
    """Tiles of the accuracies, with interval and number of videos, and what was counted as wrong or left out."""
    summary = evaluation.summary
    videos = f"{summary.get('videos', 0):,}{SPACE}videos"
    tiles = [
        (percent(each.share), "\n".join(filter(None, (each.label, _interval(each.interval_text), videos))), "main")
        for each in shares_of(summary)
    ]
    for each in shares_of(summary.get("fused") or {})[:1]:
        other = Path(str(summary["fused"].get("run") or "another run")).name
        lines = (f"{each.label}, fused with {other}", _interval(each.interval_text), videos)
        tiles.append((percent(each.share), "\n".join(filter(None, lines)), "main"))
    yield figures(tiles)
    step, split = summary.get("step"), summary.get("split")
    words = (summary.get("protocol") or {}).get("words")
    parts = (f"evaluated at step {step:,}" if step is not None else "", f"split {split}" if split else "", words or "")
    yield html.soft(" · ".join(filter(None, parts)))
    if summary.get("fused"):
        yield html.soft(f"fused: {fused_words(summary['fused'])}")
    yield _beside_the_papers(run, evaluation)
    counted = (("damaged", "damaged videos, counted as wrong"), ("left_out", "videos of other classes, left out"))
    for name, label in counted:
        if summary.get(name):
            yield html.note(f"{summary[name]:,} {label}.")


def _beside_the_papers(run: RunFiles, evaluation: Evaluation) -> str:
    """The published figures beside the measured ones, and why they are not comparable where they are not."""
    settings = {path.removeprefix("settings."): value for path, value in run.settings.items()}
    summary, fused = evaluation.summary, evaluation.summary.get("fused")
    measured = {**summary, "clip1": None, **fused} if fused else summary
    indexes = settings.get("identity.data.index") or []
    seen = Seen(str(settings.get("data.store", "")), indexes, settings.get("derived.steps"))
    other = None if evaluation.fused_settings is None else trained_of(evaluation.fused_settings)
    held = hold_against(trained_of(settings), measured, seen, other)
    if isinstance(held, str):
        return html.soft(f"No published figure is comparable. {held}")
    intervals = measured.get("intervals") or {}
    rows = [
        (name, percent(here), interval_text(intervals.get(key)), percent(there))
        for name, key, here, there in held.figures(measured)
    ]
    said = "; ".join(held.differences)
    said = f"Not comparable: {said}." if said else "Comparable: the same data, network, clips, schedule and protocol."
    heads = ("", "measured", "95 % interval", "published")
    words = html.soft(f"{held.row.table}, {held.row.row}. {said}")
    return html.card("Beside the papers", words, table(heads, rows, frozenset({1, 2, 3})))


def _interval(text: str) -> str:
    return "" if text == NONE else f"95{SPACE}%: {text}"


def _origin(run: RunFiles, evaluation: Evaluation) -> str:
    summary = evaluation.summary
    rows = [
        ("run", run.path),
        ("evaluation", evaluation.name),
        *((name, summary.get(name) or run.setting(name)) for name in ("store", "index")),
        *((name, summary.get(name)) for name in ("split", "step")),
        ("protocol", (summary.get("protocol") or {}).get("words")),
        *((name, f"{summary[name]:,}" if name in summary else None) for name in ("videos", "clips")),
        *(("note", note) for note in summary.get("notes") or ()),
    ]
    return html.facts((name, value) for name, value in rows if value is not None)


def _curves(run: RunFiles, album: html.Album) -> Iterator[str]:
    loss = album.picture("loss", "loss and learning rate over steps", lambda theme: curves.loss_figure(run, theme))
    yield html.card("Loss and learning rate", loss)
    top1 = album.picture("accuracy", "top-1 over steps", lambda theme: curves.accuracy_figure(run, theme))
    yield html.card("Accuracy in training", top1)


def _settings(run: RunFiles) -> Iterator[str]:
    shown = shown_settings(run)
    parts = []
    if shown.changed:
        heads = ("setting", "value", "default")
        yield html.folded(
            f"Settings that differ from their defaults ({len(shown.changed)})",
            html.settings_table(heads, shown.changed),
        )
    for section, rows in shown.sections.items():
        inside = html.settings_table(("setting", "value"), rows)
        parts.append(html.folded_part(f"{section} ({len(rows)})", inside))
    yield html.folded(f"The other settings ({shown.count - len(shown.changed)})", *parts)
