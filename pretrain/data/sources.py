"""The stores that a run reads: their splits, the classes of all of them, and the order of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field

from pretrain.data.reading.outage import STORE_RETRY_SECONDS, PatientStore
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.reading.store_split import Split, open_split
from pretrain.data.sampling.balance import Balance
from pretrain.data.sampling.mixture import Mixture
from pretrain.data.sampling.order import Order, OrderSettings, Shards, ShardSizes
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.pool import LoaderSettings
from sharding.base.errors import UserError
from sharding.base.settings import Seconds, Settings
from sharding.format.index import index_path, read_head
from sharding.media.transcode import VideoSettings
from sharding.storage.store import Store, open_store

Weight = Annotated[int, Field(ge=1, description="samples of this store for every `weight` samples of each other store")]


class MixedStore(Settings):
    """Another store to read, and how often; the samples of a small one repeat within a pass."""

    store: Annotated[str, Field(description="directory or URL that `reelscale shard` wrote")]
    weight: Weight = 1


class DataSettings(Settings):
    """Which samples in which order, and what a clip of one is."""

    store: Annotated[str, Field(description="directory or URL that `reelscale shard` wrote")]
    weight: Weight = 1
    mix: Annotated[
        tuple[MixedStore, ...], Field(description="other stores to mix in; classes of one name are one class")
    ] = ()
    order: Annotated[OrderSettings, Field(description="how samples are shuffled")] = OrderSettings()
    clip: Annotated[ClipSettings, Field(description="what a clip is, in frames and pixels")] = ClipSettings()
    loader: Annotated[LoaderSettings, Field(description="processes that decode clips")] = LoaderSettings()
    reading: Annotated[ReadingSettings, Field(description="how bytes are read from a store")] = ReadingSettings()
    patience_seconds: Annotated[
        Seconds,
        Field(
            description="seconds that a run waits for a store that stops answering; then it saves and ends with exit "
            "code 75"
        ),
    ] = 900.0


@dataclass(frozen=True)
class Sources:
    """What a run trains on: a split of each store, and the names of all classes. `unseen`: the first store's own."""

    splits: list[Split]
    classes: list[str]
    unseen: Split

    @property
    def samples(self) -> int:
        """Samples of all stores."""
        return sum(map(len, self.splits))

    @property
    def versions(self) -> list[str]:
        """The index version of each store."""
        return [split.index.version for split in self.splits]

    def stored(self) -> dict[str, Any] | None:
        """How the first store's videos are stored: its settings of `shard`, read anew; None where it does not say.

        Training does not need them.
        """
        with suppress(UserError):
            head = read_head(self.splits[0].store)
            return None if head is None else stored_videos(head["settings"])
        return None


def stored_videos(shard_settings: dict[str, Any]) -> dict[str, Any]:
    """Of a store's settings those that say what is stored of a video."""
    return {name: value for name, value in shard_settings.items() if name in VideoSettings.model_fields}


def open_sources(data: DataSettings, versions: Sequence[str] | None = None) -> Sources:
    """The stores' training splits: the newest versions of their indexes, or those that a run began with.

    Raises UserError for a store that cannot be read or has no such version.
    """
    urls = [data.store, *(mixed.store for mixed in data.mix)]
    known = list(versions) if versions is not None else [None] * len(urls)
    splits = [open_split(open_store(url), "train", version) for url, version in zip(urls, known, strict=True)]
    for url, split in zip(urls, splits, strict=True):
        own = open_store(url, min(STORE_RETRY_SECONDS, data.patience_seconds), ask=False)
        patient = PatientStore(own, index_path(split.index.version), data.patience_seconds)
        split.store = split.source = cast(Store, patient)  # of which a split only reads
    classes = list(dict.fromkeys(name for split in splits for name in split.index.classes))
    unseen = Split(splits[0].store, splits[0].index, "val")
    for split in [*splits, unseen]:
        split.renumber_labels(classes)
    return Sources(splits, classes, unseen)


def order_of(sources: Sources, data: DataSettings, seed: int, lanes: int, lane_batch: int) -> Order | Mixture:
    """The order of the samples. Raises UserError for one that cannot be had."""
    settings = data.order
    orders = tuple(
        Order(
            _shards(split, settings.balance), seed, lanes, lane_batch, settings.block_bytes, settings.remainder, number
        )
        for number, split in enumerate(sources.splits)
    )
    if len(orders) == 1:
        return orders[0]
    return Mixture(orders, (data.weight, *(mixed.weight for mixed in data.mix)), seed)


def describe_order(order: Order | Mixture, sources: Sources) -> list[str]:
    """Lines for the log that say what an order does besides showing every sample once a pass."""
    orders = order.orders if isinstance(order, Mixture) else (order,)
    lines = [
        each.shards.describe(split.index.classes)
        for each, split in zip(orders, sources.splits, strict=True)
        if isinstance(each.shards, Balance)
    ]
    if isinstance(order, Mixture):
        lines.append(order.describe([split.store.url for split in sources.splits]))
    return lines


def _shards(split: Split, balance: float) -> Shards:
    sizes = ShardSizes(np.array(split.shard_sizes), np.array(split.shard_bytes))
    return Balance(sizes, split.label_histograms(), balance) if balance else sizes
