"""What a run's page shows of one evaluation: confusions, accuracy by class, calibration and clips, errors first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.report import figures as drawn
from pretrain.report import html
from pretrain.report.class_names import ClassLabels, Label
from pretrain.report.results import interval_text, percent
from pretrain.report.run_data import Evaluation
from pretrain.scoring.confusion import confused_pairs, most_confused
from sharding.pages.html import table

_PAIRS = 12  # confusions listed
_HARDEST = 20  # classes listed open


def evaluation_cards(evaluation: Evaluation, album: html.Album) -> Iterator[str]:
    """The cards about an evaluation, as HTML; its figures become files of the album."""
    labels = ClassLabels(evaluation.classes, _named(evaluation))
    matrix = _confusion(evaluation, album, labels)
    wide = len(evaluation.classes) > drawn.COUNTED  # so many names can be read at the page's full width alone
    if wide:
        yield matrix
    yield html.columns(
        [
            *(() if wide else (matrix,)),
            *_calibration(evaluation, album),
            *_confused(evaluation),
            _per_class(evaluation, album, labels),
        ]
    )
    if labels.legend:
        yield html.card("Names in the figures", table(("in figures", "class"), labels.legend))
    yield from _clips(evaluation)


def _named(evaluation: Evaluation) -> set[str]:
    """The classes that the figures name: those of the confusion matrix, and of bars if they are few."""
    barred = [str(row["name"]) for row in _rows_by_class(evaluation)]
    shown = {evaluation.classes[number] for number in most_confused(evaluation.confusion(), drawn.NAMED).numbers}
    return shown.union(barred if len(barred) <= drawn.NAMED else ())


def _confusion(evaluation: Evaluation, album: html.Album, labels: ClassLabels) -> str:
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
    if len(names) <= drawn.NAMED:
        return html.card("Confusion matrix", shown)
    part = html.soft(f"the {len(block.numbers)} of {len(names):,} classes that are confused most often")
    return html.card("Confusion matrix", part, shown)


def _confused(evaluation: Evaluation) -> Iterator[str]:
    counts, names = evaluation.confusion(), evaluation.classes
    rows = [
        (names[truth], names[taken], f"{videos:,}", percent(videos / counts[truth].sum()))
        for truth, taken, videos in confused_pairs(counts, _PAIRS)
    ]
    if rows:
        heads = ("true class", "predicted", "videos", "of the class")
        yield html.card("Confused most often", table(heads, rows, frozenset({2, 3})))


def _rows_by_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [row for row in evaluation.summary.get("per_class", []) if row.get("video1") is not None and row["videos"]]


def _per_class(evaluation: Evaluation, album: html.Album, labels: ClassLabels) -> str:
    rows = _rows_by_class(evaluation)
    if not rows:
        return html.card("Accuracy by class", "<p>No class has an evaluated video.</p>")
    names, accuracies = [str(row["name"]) for row in rows], [float(row["video1"]) for row in rows]
    few = len(rows) <= drawn.NAMED
    written = [labels[name] if few else Label("") for name in names]
    shown = album.picture(
        "per-class", "video@1 of every class", lambda theme: drawn.per_class_figure(written, accuracies, theme)
    )
    lines = [_class_line(row) for row in sorted(rows, key=lambda row: (float(row["video1"]), str(row["name"])))]
    heads, numbers = ("class", "videos", "video@1", "95 % interval"), frozenset({1, 2, 3})
    if few:
        return html.card("Accuracy by class", shown, html.folded_part("As a table", table(heads, lines, numbers)))
    return html.card(
        "Accuracy by class",
        shown,
        f"<h4>The {_HARDEST} hardest of {len(rows):,} classes</h4>",
        table(heads, lines[:_HARDEST], numbers),
        html.folded_part(f"The other {len(rows) - _HARDEST:,}", table(heads, lines[_HARDEST:], numbers)),
    )


def _class_line(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return str(row["name"]), f"{row['videos']:,}", percent(row["video1"]), interval_text(row.get("interval"))


def _calibration(evaluation: Evaluation, album: html.Album) -> Iterator[str]:
    calibration = evaluation.summary.get("calibration") or {}
    if calibration.get("ece") is None:
        return
    shown = album.picture(
        "reliability",
        "share of right videos over the score",
        lambda theme: drawn.reliability_figure(calibration["reliability"], theme),
    )
    error = (
        f"Expected calibration error (ECE) {percent(calibration['ece'])}: so far scores lie from the share that is "
        f"right, on average over {calibration['videos']:,} videos."
    )
    yield html.card("Calibration", html.soft(error), shown)


def _clips(evaluation: Evaluation) -> Iterator[str]:
    clips = evaluation.clips
    if clips is None:
        return
    parts: dict[bool, list[str]] = {False: [], True: []}
    rights = evaluation.rights()
    for place in drawn.clips_shown(evaluation, clips):
        row = clips.rows[place]
        truth, taken = evaluation.truths[row], evaluation.predictions[row]
        name = evaluation.classes[truth] if truth >= 0 else "no label"
        strip = html.strip(
            drawn.strip_jpeg(clips.frames[place]), name, evaluation.classes[taken], rights[row],
            percent(evaluation.scores[row]),
        )  # fmt: skip
        parts[rights[row]].append(strip)
    wrong = sum(taken >= 0 for taken in evaluation.predictions) - sum(rights)  # of damaged ones nothing is shown
    if parts[False]:
        heading = f"Wrong: {len(parts[False])} of {wrong:,}, the most confident first"
        legend = html.soft("its class → what it was taken for, with the score")
        yield html.card(heading, legend, html.strips(parts[False]))
    if parts[True]:
        yield html.folded(f"Right: {len(parts[True])} of {sum(rights):,}", html.strips(parts[True]))
