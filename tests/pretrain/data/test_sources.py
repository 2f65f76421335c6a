"""The stores that a run reads: several mixed, classes by their names, rare ones shown more often, and versions held."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pretrain.data.loader import ClipBatch, Loader
from pretrain.data.sources import DataSettings, Sources, describe_order, open_sources, order_of
from pretrain.data.workers.pool import LoaderSettings
from pretrain.engine.distributed import World
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings
from pretrain.training.preflight import preflight
from pretrain.training.setup import derived_from, open_same_sources
from sharding.base.errors import UserError
from sharding.corpora.manifest import CorpusSettings
from sharding.storage.store import open_store
from tests.demo.corpora import write_video
from tests.pretrain.conftest import CLASSES, CLIP, SETTINGS
from tests.support.stores import shard


def data(store: str, **more: Any) -> DataSettings:
    return DataSettings.model_validate({"store": store, "clip": CLIP, **more})


def shown(settings: DataSettings, sources: Sources, steps: int, lanes: int = 2) -> list[ClipBatch]:
    order = order_of(sources, settings, 5, lanes, 2)
    loader = Loader(sources, order, settings.clip, LoaderSettings(workers=1), range(lanes), last=steps)
    with loader:
        return [ClipBatch(clips.planes, clips.targets.clone(), clips.keys) for lanes_ in loader for clips in lanes_]


def keys_of(sources: Sources, store: int) -> set[str]:
    split = sources.splits[store]
    return {split.sample(number).key for number in range(len(split))}


def test_stores_are_mixed_by_their_weights_and_classes_by_name(store: str, other_store: str) -> None:
    settings = data(store, weight=3, mix=[{"store": other_store, "weight": 1}])
    sources = open_sources(settings)
    assert sources.classes == [*CLASSES, "left", "right"]
    assert sources.samples == sum(map(len, sources.splits)) and len(sources.versions) == 2
    theirs, ours = keys_of(sources, 1), keys_of(sources, 0)
    clips = shown(settings, sources, 8)
    keys = [key for each in clips for key in each.keys]
    assert len(keys) == 32 and sum(key in theirs for key in keys) == 8
    assert Counter(key for key in keys if key in ours).most_common(1)[0][1] <= 2  # 24 of 13 samples: two passes
    for each in clips:
        for key, row in zip(each.keys, each.targets, strict=True):
            (label,) = row.nonzero().flatten().tolist()
            assert (label >= 6) == (key in theirs)
    (told,) = describe_order(order_of(sources, settings, 5, 2, 2), sources)
    assert f"{other_store}: 1 of every 4" in told


def test_the_same_store_twice_shares_its_classes(store: str) -> None:
    sources = open_sources(data(store, mix=[{"store": store}]))
    assert sources.classes == CLASSES and sources.samples == 26


@pytest.mark.parametrize("weight", [0, -1, 1.5])
def test_weights_are_whole_numbers(store: str, weight: float) -> None:
    with pytest.raises(ValidationError, match="weight"):
        data(store, weight=weight)


def test_balanced_passes_show_classes_equally_often(store: str) -> None:
    """The store's short video makes one class of three samples, the others have two."""
    settings = data(store, order={"balance": 1})
    sources = open_sources(settings)
    rounds = 6 * 13 // 4  # steps of 4 clips: whole passes, nearly
    clips = shown(settings, sources, rounds)
    labels = Counter(int(row.argmax()) for each in clips for row in each.targets)
    due = rounds * 4 / len(CLASSES)
    assert set(labels) == set(range(6)) and all(abs(count - due) <= 3 for count in labels.values()), labels
    (told,) = describe_order(order_of(sources, settings, 5, 2, 2), sources)
    assert "repeat and are left out" in told
    assert describe_order(order_of(sources, data(store), 5, 2, 2), sources) == []


def test_a_batch_that_no_pass_fills_is_refused(store: str) -> None:
    settings = data(store, order={"remainder": "drop"})
    sources = open_sources(settings)
    assert order_of(sources, settings, 0, 6, 2).passes(1) == 1.0
    with pytest.raises(UserError, match="13 training samples do not fill one batch of 7 lanes × 2"):
        order_of(sources, settings, 0, 7, 2)


@dataclass(frozen=True)
class Sharing(World):
    """As if rank 0 had opened these versions before the store grew."""

    versions: list[str]

    def broadcast_text(self, make: object, patience: object = None) -> str:
        return json.dumps(self.versions)


@pytest.mark.slow
def test_a_store_that_grew_is_read_as_it_was(pictures: Any, tmp_path: Path) -> None:
    """A run that began with one version of the index goes on with it, though more videos have come."""
    corpus, url = tmp_path / "corpus", str(tmp_path / "store")
    for name, first in (("a", 0), ("b", 20)):
        (corpus / name).mkdir(parents=True)
        write_video(corpus / name / "0.mp4", pictures[first : first + 16])
    shard(corpus, open_store(url), SETTINGS, CorpusSettings(validation=0))
    begun = open_sources(data(url))
    expected = [clips.keys for clips in shown(data(url), begun, 3)]
    write_video(corpus / "a" / "1.mp4", pictures[40:60])
    shard(corpus, open_store(url), SETTINGS, CorpusSettings(validation=0))
    assert open_sources(data(url)).samples == 3
    again = open_sources(data(url), begun.versions)
    assert again.samples == 2 and [clips.keys for clips in shown(data(url), again, 3)] == expected
    with pytest.raises(UserError, match="no such version of the index"):
        open_sources(data(url), ["000009-0123456789abcdef"])
    resolved = preflight(TrainSettings(data=data(url), lanes=1, lane_batch=2), 1)
    alone, run = World(0, 1, torch.device("cpu")), Run(tmp_path / "run", writes=True)
    assert open_same_sources(resolved, run, alone).samples == 3
    assert derived_from(resolved, open_sources(data(url)), alone) is resolved.derived
    assert open_same_sources(resolved, run, Sharing(1, 2, torch.device("cpu"), begun.versions)).samples == 2
    # Its folder is not where the launcher looked, or was just fetched from `checkpoint.store`.
    run.begin(resolved.settings, begun.classes, begun.versions, {})
    fetched = open_same_sources(resolved, run, alone)
    assert fetched.samples == 2 and derived_from(resolved, fetched, alone)["training_samples"] == 2
    run.begin(resolved.settings, fetched.classes, fetched.versions, {})


def test_every_sample_of_a_pass_is_shown_once(store: str) -> None:
    settings = data(store)
    sources = open_sources(settings)
    keys = [key for clips in shown(settings, sources, 13) for key in clips.keys]
    assert len(keys) == 52 and set(Counter(keys).values()) == {4}
