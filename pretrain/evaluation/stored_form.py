"""Decides in which form videos are stored before a network sees them: the one of those that it learned from."""

from __future__ import annotations

from typing import Any

from pretrain.data.sources import stored_videos
from pretrain.data.views.views import ClipSettings
from pretrain.evaluation.trained_network import TrainedNetwork
from sharding.base.errors import UserError
from sharding.base.settings import validate
from sharding.format.index import require_head
from sharding.media.encoder import SHORT_EDGE, EncodeSettings
from sharding.media.flow import FlowSettings
from sharding.media.transcode import VideoSettings
from sharding.storage.store import open_store

_LARGEST_EDGE = 1080  # that `shard` stores


def stored_forms(trained: TrainedNetwork, store: str | None) -> tuple[list[VideoSettings], list[str]]:
    """The settings by which `shard` would store a video for this network, and notes for its user; it is never cut.

    Those of `store`, else those that the network's run or export recorded, else those of the store that it learned
    from. Where that cannot be read, the defaults, as large as the clips need; a note says so. They are also the second
    of the list where the first copies packets, which not every video allows. Raises UserError for a `store` that is
    none, and for settings that another version wrote.
    """
    default = default_form(trained.clip)
    notes: list[str] = []
    where, tree = trained.where, trained.stored
    if store is not None:
        where, tree = store, _of_store(store)
    elif tree is None and trained.store is not None:
        try:
            where, tree = trained.store, _of_store(trained.store)
        except UserError as error:
            notes.append(f"the store that the network learned from cannot be read ({error.what}: {trained.store})")
    if tree is None:
        size = f"a short edge of {default.encode.short_edge} pixels"
        notes.append(
            f"how its videos were stored is not known: these are prepared by the defaults of shard, at {size} "
            "(--store STORE takes a store's)"
        )
        return [default], notes
    form = form_for(trained.clip, validate(VideoSettings, tree, where))
    return [form, default] if form.encode.copy_packets else [form], notes


def form_for(clip: ClipSettings, stored: VideoSettings) -> VideoSettings:
    """These settings for a whole video: without segments, and with optical flow only where the clips are of flow.

    Flow is computed of frames that are stored anew: packets are then not copied.
    """
    if clip.input == "rgb":
        return VideoSettings(encode=stored.encode)
    if stored.encode.copy_packets:
        return default_form(clip)
    return VideoSettings(encode=stored.encode, flow=stored.flow or FlowSettings())


def default_form(clip: ClipSettings) -> VideoSettings:
    """The defaults of `shard`, with pictures that are large enough for these clips."""
    needed = clip.short_edge[1] if clip.short_edge else min(clip.resize or (clip.crop, clip.crop))
    edge = min(max(SHORT_EDGE, needed + needed % 2), _LARGEST_EDGE)
    return VideoSettings(encode=EncodeSettings(short_edge=edge), flow=None if clip.input == "rgb" else FlowSettings())


def _of_store(url: str) -> dict[str, Any]:
    return stored_videos(require_head(open_store(url))["settings"])
