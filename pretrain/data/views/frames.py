"""Where a clip begins in its video, drawn at random in training, and which frames it shows: pure functions.

A clip is `length` frames at a stride of stored frames, or at a rate of its own (`fps`), which goes by the frames'
times. Either way a clip fits where `needed` frames or more are left: it may begin at 0, …, frames - needed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = Sequence[float] | NDArray[np.float64]  # of a video's frames, in seconds, in the order shown

# Times are rounded to their container's ticks, a millisecond in Matroska: a frame that is due so soon is shown.
_SOON = 0.0015


def needed_frames(length: int, stride: int) -> int:
    """Frames a clip spans: (length - 1) * stride + 1."""
    return (length - 1) * stride + 1


def needed_frames_at(times: Times, length: int, fps: float) -> int:
    """`needed` of a clip of `length` frames at `fps`: more than there are frames where not even the first start fits.

    A clip fits if the video's last frame is shown no sooner than the clip's last one is wanted. At a constant rate
    that is `needed_frames(length, rate / fps)`, rounded up.
    """
    shown, soon, _ = _timing(times)
    fitting = np.searchsorted(shown, shown[-1] + soon - (length - 1) / fps, side="right")
    return len(shown) + 1 - int(fitting)


def is_looped(frames: int, needed: int) -> bool:
    """Whether a video is too short for a clip, which then shows some of its frames again: a thing to count."""
    return frames < needed


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


def clip_frames_at(times: Times, start: int, length: int, fps: float) -> list[int]:
    """The numbers of the frames that are shown at the time of frame `start` + i / fps, i = 0, …, length - 1.

    A short video is looped: its last frame is shown for as long as a frame is on the average, then its first again.
    At a constant rate frame i is floor(start + i * rate / fps), modulo the number of frames.
    """
    shown, soon, end = _timing(times)
    if end == 0.0:
        return [start] * length
    wanted = (shown[start] + soon + np.arange(length) / fps) % end
    numbers: list[int] = (np.searchsorted(shown, wanted, side="right") - 1).tolist()
    return numbers


def _timing(times: Times) -> tuple[NDArray[np.float64], float, float]:
    """Times from the first frame's on, how early a frame may be shown, and when the last one ends: all in seconds."""
    shown = np.asarray(times, np.float64)
    shown = shown - shown[0]
    interval = float(shown[-1]) / max(len(shown) - 1, 1)
    return shown, min(_SOON, interval / 4), float(shown[-1]) + interval
