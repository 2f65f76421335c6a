"""Clips from an object store: the same samples and bits as from a directory, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.data.loader import ClipBatch, Loader
from pretrain.data.reading.outage import StoreGone
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.sources import open_sources, order_of
from pretrain.data.workers.pool import LoaderSettings
from sharding.storage.store import open_store
from tests.pretrain.data.test_loader import SETTINGS, assert_same, data, kept
from tests.support.network_faults import Proxy, before_s3
from tests.support.s3 import S3Server, running_s3

pytestmark = pytest.mark.slow

STEPS = 12


@pytest.fixture(scope="module")
def server(store: str) -> Iterator[S3Server]:
    with running_s3() as result, pytest.MonkeyPatch.context() as patch:
        for name, value in result.environment.items():
            patch.setenv(name, value)
        here, there = open_store(store), open_store("s3://bucket/store")
        for path in here.list():
            there.put(path, here.get(path))
        yield result


@pytest.fixture()
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with before_s3(server.environment, monkeypatch, seed=2) as found:
        yield found


def shown(url: str, reading: ReadingSettings | None = None) -> tuple[list[list[ClipBatch]], Loader]:
    settings = data(url)
    sources = open_sources(settings)
    order = order_of(sources, settings, 3, 2, 2)
    given = LoaderSettings(workers=2, damaged=0)
    loader = Loader(sources, order, SETTINGS, given, range(2), last=STEPS, reading=reading or ReadingSettings())
    with loader:
        return [[kept(clips) for clips in lanes] for lanes in loader], loader


def test_faults_change_nothing(store: str, proxy: Proxy) -> None:
    """A tenth of all answers are 503, resets or cut bodies: the same clips in the same order, and retries counted."""
    expected, local = shown(store)
    proxy.rate = 0.1
    found, loader = shown("s3://bucket/store")
    assert_same(found, expected)
    assert sum(proxy.counts.values()) > 3 and loader.stats.retries > 0 and local.stats.retries == 0
    assert loader.damage_budget.met == {}


def test_whole_parts_from_afar(store: str, proxy: Proxy, tmp_path: Path) -> None:
    expected, _ = shown(store)
    proxy.rate = 0.1
    found, _ = shown("s3://bucket/store", ReadingSettings(folder=tmp_path / "parts", mode="parts"))
    assert_same(found, expected)
    kept_parts = [path for path in (tmp_path / "parts").iterdir() if not path.name.startswith(".")]
    assert kept_parts


def test_a_store_that_is_gone_ends_the_run(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what patience ends in, at the trainer."""
    settings = data("s3://bucket/store").model_copy(update={"patience_seconds": 1.0})
    sources = open_sources(settings)
    order = order_of(sources, settings, 3, 2, 2)
    with Loader(sources, order, SETTINGS, LoaderSettings(workers=1, prefetch=1), range(2)) as loader:
        steps = iter(loader)
        next(steps)
        proxy.rate = 1.0
        with pytest.raises(StoreGone, match="does not answer"):
            for _ in range(200):
                next(steps)
