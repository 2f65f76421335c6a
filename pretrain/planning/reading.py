"""The arithmetic of reading and decoding clips: pure functions."""

from __future__ import annotations

import math

KEY_FRAME_EVERY = 16  # frames, of what `reelscale shard` stores: a clip is read from a key frame on, to a group's end
PART_RANGE = 8 * 2**20  # bytes of a range of a whole part
S3_READS = 5_500.0  # a second, of one prefix
_MOST_WORKERS = 16  # decoding processes of a rank where none are set: pretrain.data.workers.pool


def clip_bytes(span: int, bytes_per_frame: float, sample_frames: float) -> float:
    """Bytes that a clip of `span` stored frames reads by a range: whole groups of frames, at most the sample."""
    return min(span + KEY_FRAME_EVERY, sample_frames) * bytes_per_frame


def decoding_cores(cores: int, gpus: int, workers: int | None) -> int:
    """Cores of a node that decode: those of each rank's workers, at most what there are."""
    each = workers or max(1, min(cores // gpus, _MOST_WORKERS))
    return min(cores, each * gpus)


def hottest_shard_clips(lanes: int, lane_batch: int, shards: int, shard_bytes: float, block_bytes: float) -> float:
    """Clips of one step that come from the shard which most of them come from.

    With fewer shards than lanes, several lanes read one shard at a time. Else a lane draws its clips from the shards of
    its block, and the step waits for the lane that happens to draw the most of them from one shard.
    """
    if lanes > shards:
        return lanes * lane_batch / shards
    share = min(1.0, shard_bytes / block_bytes)
    return _most_drawn(lane_batch, share, round(lanes / share))


def _most_drawn(draws: int, share: float, times: int) -> int:
    """The most hits of `times` rows of `draws` draws, each a hit with the chance `share`: the median, about.

    The largest number that half a row or more is expected to reach.
    """
    if share == 1.0:
        return draws
    expected = 0.0
    for hits in range(draws, 0, -1):
        ways = math.lgamma(draws + 1) - math.lgamma(hits + 1) - math.lgamma(draws - hits + 1)
        expected += times * math.exp(ways + hits * math.log(share) + (draws - hits) * math.log1p(-share))
        if expected >= 0.5:
            return hits
    return 1


def read_seconds(amount: float, rate: float | None) -> float:
    """Seconds for an amount at a rate; None: no limit."""
    return amount / rate if rate else 0.0
