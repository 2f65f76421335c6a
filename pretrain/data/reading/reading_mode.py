"""Whether clips are read by ranges of a store's tars, or from whole parts prefetched to this host.

Which is cheaper follows from what a clip needs of a sample. Neither changes what is shown.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.data.reading.part_cache import PartCacheSettings
from pretrain.data.reading.store_split import Split
from pretrain.data.views.frames import needed_frames
from pretrain.data.views.views import ClipSettings
from sharding.base.errors import UserError

_REQUEST = 2**16  # bytes that could have been read in the time of a request
_GROUP = 16  # frames that a range has more than its clip, as long as groups are the ones that `shard` makes


class ReadingSettings(PartCacheSettings):
    """How bytes are read from a store: packets of single clips, or whole tar parts through a cache."""

    mode: Annotated[
        Literal["auto", "ranges", "parts"],
        Field(
            description="ranges: only the packets of each clip; parts: whole tar parts, read ahead into the cache; "
            "auto: parts where there is a cache and it holds all of them or a clip needs most of a sample"
        ),
    ] = "auto"


def uses_whole_parts(settings: ReadingSettings, split: Split, clip: ClipSettings) -> bool:
    """Whether whole parts are fetched. Raises UserError where they are asked for and have no place."""
    if settings.mode == "ranges":
        return False
    if settings.folder is None:
        if settings.mode == "auto":
            return False
        raise UserError(
            "whole parts are to be read, and nothing says where they are kept",
            "data.reading",
            "set data.reading.folder to a folder on a local disk, or data.reading.mode=ranges",
        )
    total, samples = sum(split.shard_bytes), len(split)
    if settings.mode == "parts" or total <= settings.bytes:
        return True
    frames = split.index.splits[split.name].frames / samples
    share = min(1.0, (needed_frames(clip.frames, clip.stride) + _GROUP) / frames)
    return total / samples * share + _REQUEST >= total / samples
