"""Writes the report: one HTML page about one or more runs, with its figures as PNG files beside it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.report import figures as drawn
from pretrain.report import html
from pretrain.report.class_names import ClassLabels, Label
from pretrain.report.figures import DARK, LIGHT, Theme
from pretrain.report.run_data import Evaluation, RunFiles, read_run
from pretrain.scoring.confusion import confused_pairs, most_confused
from sharding.base.errors import UserError
from sharding.pages.html import figures, table, text_of

_LISTED = 12  # rows of the tables that stand in for names in a figure


@dataclass(frozen=True)
class _Album:
    """Where the PNG files of one run go: into `folder`, their names beginning with `prefix`."""

    folder: Path
    prefix: str

    def picture(self, name: str, described: str, draw: Callable[[Theme], bytes]) -> str:
        """Draw for both pages, keep the light one as a file, and give the HTML of both."""
        light = draw(LIGHT)
        (self.folder / f"{self.prefix}{name}.png").write_bytes(light)
        return html.picture(described, light, draw(DARK))

    def sheet(self, name: str, described: str, png: bytes) -> str:
        (self.folder / f"{self.prefix}{name}.png").write_bytes(png)
        return html.picture(described, png)


def write_report(runs: list[Path], out: Path) -> Path:
    """Write `out`/report.html about these runs' folders, and the PNG files it holds beside it.

    The page stands alone: every picture is inside it, and it fetches and runs nothing. A run that was not yet
    evaluated, or not yet validated, gets the report of what there is. With several runs the PNG files are
    named after their run and a table compares the runs.

    Returns the path of the page. Raises UserError if `runs` is empty or a folder is missing or unreadable.
    """
    if not runs:
        raise UserError("there is no run to report on", "the list of runs", "name at least one run's folder")
    read = [read_run(Path(path)) for path in runs]
    out.mkdir(parents=True, exist_ok=True)
    body = ["<h1>Reelscale report</h1>"]
    if len(read) > 1:
        body.append(_comparison(read))
    for number, run in enumerate(read, start=1):
        prefix = "" if len(read) == 1 else f"{number:02d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)}-"
        body.extend(_run(run, _Album(out, prefix)))
    path = out / "report.html"
    path.write_text(
        html.page(f"Reelscale: {', '.join(run.name for run in read)}", body), encoding="utf-8", errors="replace"
    )
    return path


def _run(run: RunFiles, album: _Album) -> Iterator[str]:
    yield f"<h2>{text_of(run.name)}</h2>"
    yield f'<p class="soft">{text_of(_described(run))}</p>'
    yield figures(_headline(run))
    if not run.evaluations:
        command = f"reelscale evaluate configs/demo-evaluate.yaml run={shlex.quote(str(run.path))}"
        yield html.note("This run has not been evaluated yet. To evaluate it:", command)
    if run.train:
        yield html.cards(_curves(run, album))
    else:
        yield html.note("No training step has been written yet.")
    if run.train and not run.validation:
        yield html.note("No validation was run during training, so the curves show training alone.")
    for evaluation in run.evaluations:
        if len(run.evaluations) == 1:
            yield from _evaluated(evaluation, album)
        else:
            yield f"<h3>{text_of(evaluation.name)}</h3>"
            yield figures([*_scored(evaluation.summary), *_places(run, evaluation.summary)])
            yield from _evaluated(evaluation, replace(album, prefix=f"{album.prefix}{evaluation.name}-"))
    shown = {
        path.removeprefix("settings."): value
        for path, value in run.settings.items()
        if not path.startswith("identity.")  # a copy of some settings, for resuming
    }
    rows = ((path, value if isinstance(value, str) else json.dumps(value)) for path, value in shown.items())
    yield html.folded(f"Settings ({len(shown)})", table(("setting", "value"), rows))
    if run.unreadable:
        yield html.note(f"Lines of metrics.jsonl that could not be read and were left out: {run.unreadable}.")


def _described(run: RunFiles) -> str:
    if not run.evaluations:
        return str(run.path)
    summary = run.evaluations[-1].summary
    told = (("evaluated at step", summary.get("step")), ("split", summary.get("split")))
    return " · ".join([str(run.path), *(f"{name} {value}" for name, value in told if value is not None)])


def _headline(run: RunFiles) -> list[tuple[str, str, str]]:
    """Of the last evaluation, and of training."""
    summary: dict[str, Any] = run.evaluations[-1].summary if run.evaluations else {}
    boxes = _scored(summary)
    if not summary and run.validation and run.validation[-1].get("clip1") is not None:
        boxes.append((_percent(run.validation[-1]["clip1"]), "clip@1, last validation", "main"))
    if run.train:
        last = run.train[-1]
        boxes += [(f"{last[name]:,}", label, "") for name, label in _TRAINED if last.get(name) is not None]
    return boxes + _places(run, summary)


def _scored(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    shares = (("video1", "video@1"), ("video5", "video@5"), ("clip1", "clip@1"))
    boxes = [(_percent(summary[name]), label, "main") for name, label in shares if name in summary]
    if "fused" in summary:
        other = Path(summary["fused"]["run"]).name
        boxes.append((_percent(summary["fused"]["video1"]), f"video@1, fused with {other}", "main"))
    boxes += [(f"{summary[name]:,}", f"{name} evaluated", "") for name in ("videos", "clips") if name in summary]
    counted = (("damaged", "damaged videos, counted as wrong"), ("left_out", "videos of other classes, left out"))
    return boxes + [(f"{summary[name]:,}", label, "") for name, label in counted if summary.get(name)]


def _places(run: RunFiles, summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = [(name, summary.get(name) or run.setting(name)) for name in ("store", "index")]
    return [(str(value), name, "small") for name, value in found if value is not None]


_TRAINED = (("step", "steps"), ("samples", "samples trained on"))


def _curves(run: RunFiles, album: _Album) -> Iterator[str]:
    loss = album.picture("loss", "loss and learning rate over steps", lambda theme: drawn.loss_figure(run, theme))
    yield html.card("Loss and learning rate", loss)
    top1 = album.picture("accuracy", "top-1 over steps", lambda theme: drawn.accuracy_figure(run, theme))
    yield html.card("Accuracy in training", top1)


def _evaluated(evaluation: Evaluation, album: _Album) -> Iterator[str]:
    labels = ClassLabels(evaluation.classes, _named(evaluation))
    yield html.cards((_confusion(evaluation, album, labels), _per_class(evaluation, album, labels)))
    if labels.legend:
        yield html.card("Names in the figures", table(("in figures", "class"), labels.legend))
    if evaluation.clips is not None:
        png = drawn.contact_sheet(evaluation, evaluation.clips, labels)
        order = "errors first, the most confident at the top"
        legend = (
            f'<p class="soft">{order}: ✓ taken for its class · ✗ its class → what it was taken for, with the score</p>'
        )
        described = "frames of evaluated clips with their class and prediction"
        yield html.card("Clips", legend, album.sheet("clips", described, png))


def _named(evaluation: Evaluation) -> set[str]:
    """The classes that the figures name: those of the confusion matrix, of bars if they are few, and of the clips."""
    clips = evaluation.clips
    rows = [clips.rows[place] for place in drawn.in_sheet(evaluation, clips)] if clips else []
    shown = {number for row in rows for number in (evaluation.truths[row], evaluation.predictions[row])}
    barred = [str(row["name"]) for row in _rows_by_class(evaluation)]
    shown |= set(most_confused(evaluation.confusion(), drawn.NAMED).numbers)
    return {evaluation.classes[number] for number in shown - {-1}}.union(barred if len(barred) <= drawn.NAMED else ())


def _written(labels: ClassLabels, names: list[str]) -> list[Label]:
    """The labels of the classes, of which a figure writes none if they are many."""
    return [labels[name] if len(names) <= drawn.NAMED else Label("") for name in names]


def _confusion(evaluation: Evaluation, album: _Album, labels: ClassLabels) -> str:
    counts, names = evaluation.confusion(), evaluation.classes
    block = most_confused(counts, drawn.NAMED)
    if not block.numbers:  # of many classes, and nothing is confused
        return html.card("Confusion matrix", "<p>No video was taken for another class.</p>")
    written = [labels[names[number]] for number in block.numbers]
    shown = album.picture(
        "confusion",
        "confusion matrix, true class by predicted class",
        lambda theme: drawn.confusion_figure(block.counts, written, theme, block.others),
    )
    pairs = confused_pairs(counts, _LISTED)
    if len(names) <= drawn.NAMED or not pairs:
        return html.card("Confusion matrix", shown)
    rows = (
        (names[truth], names[taken], f"{videos:,}", _percent(videos / counts[truth].sum()))
        for truth, taken, videos in pairs
    )
    heads = ("true class", "predicted", "videos", "of the class")
    part = f'<p class="soft">the {len(block.numbers)} of {len(names):,} classes that are confused most often</p>'
    return html.card("Confusion matrix", part, shown, "<br>", table(heads, rows, frozenset({2, 3})))


def _rows_by_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [row for row in evaluation.summary.get("per_class", []) if row.get("video1") is not None and row["videos"]]


def _per_class(evaluation: Evaluation, album: _Album, labels: ClassLabels) -> str:
    rows = _rows_by_class(evaluation)
    if not rows:
        return html.card("Accuracy by class", "<p>No class has an evaluated video.</p>")
    names, accuracies = [str(row["name"]) for row in rows], [float(row["video1"]) for row in rows]
    written = _written(labels, names)
    shown = album.picture(
        "per-class", "video@1 of every class", lambda theme: drawn.per_class_figure(written, accuracies, theme)
    )
    if len(rows) <= drawn.NAMED:
        return html.card("Accuracy by class", shown)
    hardest = sorted(rows, key=lambda row: float(row["video1"]))[:_LISTED]
    lines = ((str(row["name"]), f"{row['videos']:,}", _percent(row["video1"])) for row in hardest)
    heads = ("hardest classes", "videos", "video@1")
    return html.card("Accuracy by class", shown, "<br>", table(heads, lines, frozenset({1, 2})))


def _comparison(runs: list[RunFiles]) -> str:
    def row(run: RunFiles, evaluation: Evaluation | None) -> list[str]:
        summary = evaluation.summary if evaluation else {}
        shares = [_percent(summary[name]) if name in summary else "–" for name in ("video1", "video5", "clip1")]
        last = run.train[-1] if run.train else {}
        name = evaluation.name if evaluation else "–"
        return [run.name, name, *shares, f"{summary.get('videos', 0):,}", f"{last.get('step', 0):,}"]

    heads = ("run", "evaluation", "video@1", "video@5", "clip@1", "videos", "steps")
    rows = [row(run, evaluation) for run in runs for evaluation in (*run.evaluations, *_none_yet(run))]
    return html.card("Runs", table(heads, rows, frozenset({2, 3, 4, 5, 6})))


def _none_yet(run: RunFiles) -> tuple[None, ...]:
    """One where a run has no evaluation, so that it has a row all the same."""
    return () if run.evaluations else (None,)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
