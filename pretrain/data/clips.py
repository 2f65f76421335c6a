"""Which frames of a video make a clip: pure functions."""

from collections.abc import Sequence


def needed_frames(length: int, stride: int) -> int:
    """Frames a clip spans: (length - 1) * stride + 1."""
    return (length - 1) * stride + 1


def train_start(frames: int, needed: int, uniform: float) -> int:
    """A random first frame in [0, frames - needed] from a uniform number in [0, 1); 0 for a short video."""
    return min(int(uniform * (max(frames - needed, 0) + 1)), max(frames - needed, 0))


def evaluation_starts(frames: int, needed: int, clips: int) -> list[int]:
    """First frames of `clips` uniform clips, both ends included; one clip sits in the middle.

    Clip i of n starts at floor(i * (frames - needed) / (n - 1)) (R(2+1)D's protocol). A video shorter than a
    clip gives one start, 0.
    """
    room = frames - needed
    if room <= 0:
        return [0]
    if clips == 1:
        return [room // 2]
    return [i * room // (clips - 1) for i in range(clips)]


def clip_frames(frames: int, start: int, length: int, stride: int) -> list[int]:
    """The `length` frame numbers of a clip; a short video is looped."""
    return [(start + i * stride) % frames for i in range(length)]


def key_groups(keys: Sequence[bool]) -> list[int]:
    """First packet of each key-frame group. `keys[i]` says whether packet i is a key frame."""
    return [i for i, key in enumerate(keys) if key]
