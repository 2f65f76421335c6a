"""Stores and runs to be evaluated, and an evaluation counted again from its file of scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.reading.store_split import open_split
from pretrain.evaluation.evaluate import EvaluateSettings, Scorer, Subject, open_subject
from pretrain.evaluation.summary import fusion_of, write_evaluation
from pretrain.evaluation.video_score import VideoScore
from sharding.corpora.manifest import CorpusSettings
from sharding.format.record import from_parquet
from sharding.storage.store import open_store
from tests.demo.corpora import write_video
from tests.pretrain.conftest import SETTINGS
from tests.support.stores import shard
from tests.support.training.checkpoints import commit, load_run


def named_store(root: Path, pictures: NDArray[Any], steps: Sequence[Sequence[str]], videos: int = 1) -> str:
    """A store of `videos` videos a class in both splits; the classes of a step are numbered after those before."""
    corpus, store = root / "corpus", str(root / "store")
    for step in steps:
        for name in step:
            for split in ("train", "val"):
                (corpus / split / name).mkdir(parents=True)
                for number in range(videos):
                    first = 7 * (sum(map(ord, name)) + 5 * number) % (len(pictures) - 16)
                    write_video(corpus / split / name / f"{number}.mp4", pictures[first : first + 16])
        shard(corpus, open_store(store), SETTINGS, CorpusSettings())
    return store


def reordered(run: Path, to: Path, classes: Sequence[str], rename: dict[str, str] | None = None) -> Path:
    """A copy of a run whose network is the same, with its classes in another order, and maybe other names."""
    before = json.loads((run / "classes.json").read_text())
    order = [before.index(name) for name in classes]
    named = [(rename or {}).get(name, name) for name in classes]
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("evaluation", "checkpoints", "attempts"))
    (to / "classes.json").write_text(json.dumps(named))
    settings = json.loads((to / "settings.json").read_text())
    settings["identity"]["classes"] = named
    (to / "settings.json").write_text(json.dumps(settings))
    checkpoint = load_run(run)
    model = {name: value[order] if name.startswith("fc.") else value for name, value in checkpoint.model.items()}
    commit(to, replace(checkpoint, model=model, optimizer={}))
    return to


def evaluated(run: Path, **settings: Any) -> dict[str, Any]:
    """The summary of an evaluation of all its videos."""
    chosen = EvaluateSettings(run=str(run), **settings)
    subject = open_subject(chosen)
    fusion = fusion_of(subject, chosen)
    scores = list(score_videos(subject, subject.rows, chosen.batch, workers=1))
    return write_evaluation(subject, chosen, scores, fusion)


def spoil(url: str, numbers: list[int], split: str = "val") -> list[str]:
    """Flip a bit in every byte of some samples' videos; their keys."""
    store, opened = open_store(url), open_split(open_store(url), split)
    samples = [opened.sample(number) for number in numbers]
    for sample in samples:
        body = np.frombuffer(store.get(sample.tar), np.uint8).copy()
        start = sample.packets.start + int(sample.packets.offset.min())
        body[start : start + int(sample.packets.size.sum())] ^= 16
        store.put(sample.tar, body.tobytes())
    return [sample.key for sample in samples]


def table_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a video, as written."""
    return from_parquet((Path(summary["folder"]) / "videos.parquet").read_bytes()).to_pylist()


def named_in(row: dict[str, Any]) -> str:
    """A video's class by the folder that it came from."""
    return str(row["uri"].split("/")[-2])


def right_by_folder(rows: Sequence[dict[str, Any]], classes: Sequence[str], k: int = 1) -> dict[str, list[bool]]:
    """Of each class that has videos, by their folders' names, whether they are right: the k best scores, by name."""
    right: dict[str, list[bool]] = {}
    for row in rows:
        best = [] if row["scores"] is None else [classes[number] for number in np.argsort(row["scores"])[::-1][:k]]
        right.setdefault(named_in(row), []).append(named_in(row) in best)
    return right


def score_videos(subject: Subject, rows: list[int], batch: int, workers: int) -> Iterator[VideoScore]:
    """The scores of videos by their rows in the split, by a scorer of their own."""
    with Scorer(subject, workers, 600) as scorer:
        yield from scorer.scores(rows, batch)
