"""The report, from run folders made up by their layout."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from pretrain.report.class_names import short
from pretrain.report.curves import smoothed
from pretrain.report.evaluation_page import evaluation_cards
from pretrain.report.figures import SHOWN, clips_shown
from pretrain.report.html import Album
from pretrain.report.report import write_report
from pretrain.report.run_data import ClipThumbnails, Evaluation, read_metrics, read_run
from pretrain.report.run_page import run_page
from pretrain.scoring.accuracy import accuracies
from pretrain.scoring.calibration import calibration
from pretrain.scoring.confusion import confused_pairs
from sharding.base.errors import UserError
from sharding.format.record import to_parquet, with_meta

CLASSES = ["archery", "<script>alert(1)</script>", "100 $ bill & $x_2$", "bobsleigh"]
FIGURES = 5  # of a run that was evaluated


def write_run(folder: Path, classes: list[str], evaluated: bool = True, validated: bool = True) -> Path:
    folder.mkdir()
    settings = {
        "settings": {
            "data": {"store": "s3://bucket/sports", "clip": {"input": "rgb", "frames": 8, "crop": 112}},
            "model": {"name": "r2plus1d", "depth": 18, "width": 1.0},
            "note": "<b>bold</b>",
        },
        "identity": {"data": {"index": "000002-0123456789abcdef"}},
        "recipe": "sports-pretrain.yaml",
        "expected": "video@1 73.0 %, as published.",
        "derived": {"global_batch": 32, "steps": 50, "parameters": 31_300_000, "gmacs_per_clip": 20.3},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "classes.json").write_text(json.dumps(classes))
    events: list[dict[str, Any]] = [
        {
            "event": "train",
            "step": step,
            "samples": 32 * step,
            "loss": 6 / step,
            "top1": step / 60,
            "lr": 0.01,
            "clips_per_second": 40.0,
        }
        for step in range(1, 51)
    ]
    if validated:
        events += [
            {"event": "validation", "step": step, "samples": 32 * step, "loss": 4 / step, "clip1": step / 80}
            for step in (10, 20, 30, 40, 50)
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if evaluated:
        write_evaluation(folder / "evaluation" / "sports-val", classes, videos=3 * len(classes))
    return folder


def write_evaluation(folder: Path, classes: list[str], videos: int) -> None:
    folder.mkdir(parents=True)
    chance = np.random.default_rng(7)
    truths = np.arange(videos) % len(classes)
    taken = np.where(chance.random(videos) < 0.7, truths, chance.integers(len(classes), size=videos))
    scores = np.full((videos, len(classes)), 0.25 / len(classes), dtype=np.float32)
    scores[np.arange(videos), taken] += 0.75
    rows = {
        "key": [f"v{number:04d}" for number in range(videos)],
        "labels": pyarrow.array([[int(truth)] for truth in truths], pyarrow.list_(pyarrow.int32())),
        "predicted": pyarrow.array(taken, pyarrow.int32()),
        "scores": pyarrow.array(scores.tolist(), pyarrow.list_(pyarrow.float32())),
    }
    write_videos(folder, rows, classes)
    ranks = [0 if right else 2 for right in truths == taken]
    summary = accuracies(classes, [[int(truth)] for truth in truths], ranks)
    summary |= {"videos": videos, "clips": 10 * videos, "clip1": 0.6125, "video1": 0.7, "video5": 0.9875}
    summary["intervals"] |= {"video1": [0.6104, 0.7767], "clip1": [0.52, 0.6981]}
    summary["calibration"] = calibration(scores.max(1).tolist(), (truths == taken).tolist())
    summary["protocol"] = {"clips": 10, "crops": 1, "crop": 112, "trained_crop": 112, "words": "10 clips"}
    summary["clips_a_video"] = 10
    summary |= {"step": 50, "store": "s3://bucket/sports", "index": "000002-0123456789abcdef", "split": "val"}
    summary |= {"weights": "step-00000050", "classes": classes}
    (folder / "summary.json").write_text(json.dumps(summary))
    shown = min(videos, 6)
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    frames = np.broadcast_to(ramp[None, None, None, :, None], (shown, 4, 24, 32, 3)).copy()
    np.savez(folder / "clips.npz", frames=frames, rows=np.arange(shown))


class Undrawn(Album):
    """An album that draws nothing."""

    def picture(self, name: str, described: str, draw: object) -> str:
        return described


def write_videos(folder: Path, rows: dict[str, Any], classes: list[str]) -> None:
    (folder / "videos.parquet").write_bytes(to_parquet(with_meta(pyarrow.table(rows), {"classes": classes})))


class Page(HTMLParser):
    """The tags of a page and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def pictures(self) -> list[np.ndarray]:
        """The figures, not the clips."""
        return self._of_kind("png")

    def clips(self) -> list[np.ndarray]:
        return self._of_kind("jpeg")

    def _of_kind(self, kind: str) -> list[np.ndarray]:
        sources = [values.get("src") or values.get("srcset") for tag, values in self.tags if tag in ("img", "source")]
        head = f"data:image/{kind};base64,"
        coded = [str(source).removeprefix(head) for source in sources if str(source).startswith(head)]
        return [imread(io.BytesIO(base64.b64decode(data, validate=True)), format=kind) for data in coded]

    def headings(self) -> list[str]:
        return re.findall(r"<h3>(.*?)</h3>", self.html)


@pytest.mark.slow
def test_page_stands_alone_and_its_pictures_decode(tmp_path: Path) -> None:
    out = tmp_path / "report"
    path = write_report([write_run(tmp_path / "run", CLASSES)], out)
    assert path == out / "report.html"
    page = Page(path)
    assert len(page.pictures()) == FIGURES * 2  # drawn for light and dark pages
    assert len(page.clips()) == 6
    assert all(picture.ndim == 3 and min(picture.shape[:2]) > 50 for picture in page.pictures())
    assert all(picture.min() < picture.max() for picture in page.pictures())
    files = {"loss.png", "accuracy.png", "confusion.png", "per-class.png", "reliability.png"}
    assert {file.name for file in out.iterdir()} == files | {"report.html"}
    assert all(imread(out / name).size for name in files)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, values in page.tags:
        for name in ("src", "srcset", "href", "data", "poster", "background"):
            assert (values.get(name) or "data:image/png").startswith(("data:image/png", "data:image/jpeg"))
    assert "url(" not in page.html
    assert "@import" not in page.html


@pytest.mark.slow
def test_figures_stand_with_interval_and_videos_and_what_they_cost(tmp_path: Path) -> None:
    page = Page(write_report([write_run(tmp_path / "run", CLASSES)], tmp_path / "out"))
    (video1,) = re.findall(r"<b>70.0.%</b><span>(.*?)</span>", page.html)
    assert video1.replace("\N{NO-BREAK SPACE}", " ") == "video@1<br>95 %: 61.0–77.7 %<br>12 videos"
    cost = re.findall(r'<div class="figure small"><b>(.*?)</b><span>(.*?)</span>', page.html)
    assert [(value.replace("\N{NO-BREAK SPACE}", " "), name) for value, name in cost] == [
        ("31.3 M", "parameters"), ("20.3", "GMACs a clip"), ("50", "steps of 50"), ("1,600", "clips trained on"),
        ("40", "clips a second"), ("40 s", "training, without validation"),
    ]  # fmt: skip
    for fact in ("s3://bucket/sports", "000002-0123456789abcdef"):
        assert f"<td>{fact}</td>" in page.html and f"<b>{fact}</b>" not in page.html
    assert "Its recipe, sports-pretrain.yaml, says: video@1 73.0 %, as published." in page.text
    for setting in ("model.depth", "derived.global_batch", "<b>bold</b>", "No published figure is comparable"):
        assert setting in page.text
    assert "identity." not in page.text
    assert "has not been evaluated" not in page.text


@pytest.mark.slow
def test_names_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    classes = [f"<script>alert({number})</script>" for number in range(40)]  # enough for the tables of names
    page = Page(write_report([write_run(tmp_path / "<run> & co", classes)], tmp_path / "out"))
    assert "&lt;script&gt;alert(" in page.html
    assert "script" not in {tag for tag, _ in page.tags}
    assert "&lt;run&gt; &amp; co" in page.html


@pytest.mark.slow
def test_run_without_an_evaluation_says_how_to_make_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", CLASSES, evaluated=False)
    page = Page(write_report([run], tmp_path / "out"))
    assert "has not been evaluated" in page.text
    assert f"reelscale evaluate configs/demo-evaluate.yaml run='{run}'" in page.text
    assert page.headings() == ["Loss and learning rate", "Accuracy in training"]
    assert "62.5 %" in page.text  # the last validation
    assert len(page.pictures()) == 4


def test_run_without_validation_or_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES, evaluated=False, validated=False)
    assert "No validation was run" in Page(write_report([run], tmp_path / "out")).text
    (run / "metrics.jsonl").unlink()
    page = Page(write_report([run], tmp_path / "out"))
    assert "No training step" in page.text
    assert not page.pictures()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 487])
def test_one_class_and_very_many(tmp_path: Path, classes: int) -> None:
    names = [f"sport {number}" for number in range(classes)]
    page = Page(write_report([write_run(tmp_path / "run", names)], tmp_path / "out"))
    assert len(page.pictures()) == FIGURES * 2
    hardest = page.html.partition("hardest of")[2].partition("</table>")[0]
    assert hardest.count("<tr><td>") == (20 if classes == 487 else 0)
    assert page.html.count("<tr><td>sport ") >= classes  # each has its row, though most are folded away
    assert ("20 hardest of 487 classes" in page.text) == (classes == 487)
    assert len(page.html) < 1.5e6


@pytest.mark.slow
def test_a_step_written_twice_counts_as_last_written_and_torn_lines_are_left_out(tmp_path: Path) -> None:
    lines = [
        '{"event": "train", "step": 1, "loss": 3.0}',
        '{"event": "train", "step": 2, "loss": 2.0}',
        '{"event": "validation", "step": 2, "clip1": 0.1}',
        '{"event": "train", "st{"event": "train", "step": 3, "loss": 9.0}',
        '{"event": "train", "step": 2, "loss": NaN}',
        '{"event": "train", "step": 2, "loss": 1.0}',
        '{"event": "train", "step": 3, "lo',
    ]
    run = write_run(tmp_path / "run", CLASSES)
    (run / "metrics.jsonl").write_text("\n".join(lines))
    train, validation, unreadable = read_metrics(run / "metrics.jsonl")
    assert [(event["step"], event["loss"]) for event in train] == [(1, 3.0), (2, 1.0)]
    assert [event["step"] for event in validation] == [2]
    assert unreadable == 2
    assert "could not be read and were left out: 2" in Page(write_report([run], tmp_path / "out")).text


def test_several_labels_count_as_the_predicted_one_among_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    rows = {
        "key": ["a", "b", "c", "d"],
        "labels": [[0, 2], [3, 1], [], [1]],
        "predicted": [2, 0, 1, None],
        "scores": [[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], None],
    }
    write_videos(run / "evaluation" / "sports-val", rows, CLASSES)
    (evaluation,) = read_run(run).evaluations
    assert evaluation.truths == [2, 3, -1, 1] and evaluation.predictions == [2, 0, 1, -1]
    assert confused_pairs(evaluation.confusion(), limit=5) == [(3, 0, 1)]


def test_the_sheet_begins_with_the_most_confident_errors() -> None:
    truths, predictions = [0, 1, 2, 0, 1, 2] * 20, [0, 1, 2, 0, 2, 1] * 20
    scores = [number / 200 for number in range(120)]
    evaluation = Evaluation("e", {}, list("abc"), [str(number) for number in range(120)], truths, predictions, scores)
    rows = list(range(0, 120, 3))  # of which pictures are kept: every second one a right one
    shown = [
        rows[place] for place in clips_shown(evaluation, ClipThumbnails(np.zeros((40, 1, 2, 2, 3), np.uint8), rows))
    ]
    wrong = [row for row in rows if truths[row] != predictions[row]]
    right = [row for row in rows if truths[row] == predictions[row]]
    assert len(shown) == SHOWN == len(set(shown))
    assert shown[: len(wrong)] == sorted(wrong, reverse=True) and set(shown[len(wrong) :]) < set(right)
    assert len(wrong) < SHOWN


def test_damaged_videos_are_not_counted_as_right(tmp_path: Path) -> None:
    frames = np.zeros((2, 1, 2, 2, 3), np.uint8)
    taken = [0, 1, -1, -1, -1]  # two are right; of the damaged ones the last has no label
    evaluation = Evaluation(
        "e", {}, ["a", "b"], list("vwxyz"), [0, 1, 0, 1, -1], taken, [0.9, 0.9, 0, 0, 0], ClipThumbnails(frames, [0, 1])
    )
    page = "".join(evaluation_cards(evaluation, Undrawn(tmp_path)))
    assert "Right: 2 of 2" in page and "Wrong" not in page


def test_what_was_fused_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "flow", CLASSES)
    path = run / "evaluation" / "sports-val" / "summary.json"
    summary = json.loads(path.read_text())
    fused = {"run": "runs/pictures", "of": "logits", "weight": 0.35, "video1": 0.8125, "intervals": {}}
    for searched, words in (({}, ""), ({"searched": {"words": "searched on 'tune'"}}, ", searched on 'tune'")):
        path.write_text(json.dumps(summary | {"fused": fused | searched}))
        text = Page(write_report([run], tmp_path / "out")).text
        assert "81.2 %" in text and "video@1, fused with pictures" in text
        assert f"fused: logits added, weight of this run 0.35{words}" in text


def test_two_runs_of_pictures_are_no_two_streams(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, CLASSES) for name in ("one", "other")]
    for run in runs:
        file = run / "settings.json"
        settings = json.loads(file.read_text())
        settings["settings"]["data"]["store"] = "s3://bucket/kinetics400"
        file.write_text(json.dumps(settings))
    path = runs[0] / "evaluation" / "sports-val" / "summary.json"
    fused = {"run": str(runs[1]), "of": "scores", "weight": 0.5, "video1": 0.8125}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fused": fused}))
    text = "".join(run_page(read_run(runs[0]), Undrawn(tmp_path)))
    assert "Not comparable: input rgb and rgb (published: rgb)" in text
    assert "another store" not in text  # the index is the one that it was trained with
    (runs[1] / "settings.json").unlink()
    (evaluation,) = read_run(runs[0]).evaluations
    assert evaluation.fused_settings is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for runs in ([], [tmp_path / "missing"], [empty]):
        with pytest.raises(UserError):
            write_report(runs, tmp_path / "out")
    run = write_run(tmp_path / "run", CLASSES)
    (run / "evaluation" / "sports-val" / "videos.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="evaluate the run again"):
        write_report([run], tmp_path / "out")


def test_a_long_name_is_cut_to_the_width_it_takes() -> None:
    assert short("a" * 26) == "a" * 26 and short("a" * 27) == "a" * 25 + "…"
    assert short("跑" * 13) == "跑" * 13 and short("跑" * 14) == "跑" * 12 + "…"
    assert short(" a\n  b ") == "a b"


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=60), st.floats(0, 100))
def test_smoothing_stays_within_what_it_smooths(values: list[float], span: float) -> None:
    averages = smoothed(np.array(values, dtype=float), span)
    for place, average in enumerate(averages):
        seen = [value for value in values[: place + 1] if value == value]
        assert (average != average) == (not seen)
        if seen:
            assert min(seen) - 1e-6 <= average <= max(seen) + 1e-6
