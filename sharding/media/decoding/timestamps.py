"""Makes the times of frames rise evenly where timestamps repeat, lack, stray or begin anew; pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

F = TypeVar("F")
Timed = tuple[F, float | None, bool]  # a frame, its time, and whether it is sure that a later one follows

NEAR = 1.0  # seconds: a time at most this much later than the one before continues it
WINDOW = 16  # frames that are looked at before times that do not rise are corrected: as many as a codec reorders


class DtsOnlyTimes:
    """The presentation times of a stream whose container has decoding times only (AVI).

    A pts is then FFmpeg's guess, and wrong where frames are reordered. But frames come out as evenly as packets go in,
    only later: by the `delay`, which is known from the stream's first frame, as that belongs to its first packet.
    """

    def __init__(self, delay: int | None = None) -> None:
        self.delay = delay
        self._first_packet: int | None = None

    def packet(self, dts: int | None) -> None:
        """Note a packet that goes into the decoder."""
        if self._first_packet is None:
            self._first_packet = dts

    def frame(self, dts: int | None) -> int | None:
        """The time stamp of a frame that came out for the packet with this dts; None if the packet has none."""
        if self.delay is None and dts is not None and self._first_packet is not None:
            self.delay = dts - self._first_packet
        return None if dts is None else dts - (self.delay or 0)


def with_rising_times(frames: Iterable[Timed[F]], step: float) -> Iterator[tuple[F, float]]:
    """The frames, in order, with times in seconds that rise; times that rise already are left as they are.

    A frame without a time comes a `step` after the one before it, or before the one after it at the beginning. Times
    that repeat or change places are put in order and spread up to the next one that is later. A single one that strays
    is put between its neighbours. Where times begin anew, as where recordings were put together, those after it follow
    it. A frame that is sure to be followed by a later one goes on at once, if it is later than those before it.
    """
    coming: Iterator[Timed[F]] = _with_first_times(iter(frames), step)
    shift = 0.0  # of times that began anew
    earlier = last = -math.inf  # the latest times of those that went out
    held: list[tuple[F, float]] = []  # frames and their times, before the shift, none of which is later than the first
    while (entry := next(coming, None)) is not None or held:
        if entry is not None:
            frame, stamp, sure = entry
            before = held[-1][1] + shift if held else last
            time = before + step - shift if stamp is None else stamp
            if stamp is not None and shift > NEAR and 0 < stamp - before <= NEAR:
                shift = 0.0  # those that seemed to begin anew were wrong
            if held and time + shift > max(last, held[0][1] + shift):
                times = rising([each + shift for _, each in held], earlier, last, time + shift, step)
                yield from zip((each for each, _ in held), times, strict=True)
                earlier, last = [last, *times][-2:]
                held = []
            if sure and not held and time + shift > last:
                earlier, last = last, time + shift
                yield frame, last
                continue
            held.append((frame, time))
            if len(held) < WINDOW:
                continue
        elif held[0][1] - held[-1][1] <= NEAR:
            times = rising([each + shift for _, each in held], earlier, last, math.inf, step)
            yield from zip((each for each, _ in held), times, strict=True)
            return
        (first, at), rest = held[0], held[1:]
        begin, end = rest[0][1], rest[-1][1]
        held = []
        if begin == end or not all(a <= b for (_, a), (_, b) in itertools.pairwise(rest)):  # they say nothing
            shown = max(at + shift, last + step)
            rest = [(each, shown + number * step - shift) for number, (each, _) in enumerate(rest, 1)]
        elif at + shift <= last:  # they began anew with the first one
            shift = last + step - at
            shown = last + step
        elif begin + shift > last:  # the first one strays
            shown = begin + shift - step if last == -math.inf else (last + begin + shift) / 2
        else:  # they begin anew after the first one
            shown = at + shift
            shift = shown + step - begin
        earlier, last = last, shown
        yield first, last
        coming = itertools.chain([(each, time, False) for each, time in rest], coming)


def _with_first_times(frames: Iterator[Timed[F]], step: float) -> Iterator[Timed[F]]:
    """The frames with times for the first ones that lack them: counted back from the first time, else from zero on."""
    untimed: list[F] = []
    following: Timed[F] | None = None
    for following in frames:
        if following[1] is not None or len(untimed) == WINDOW:
            break
        untimed.append(following[0])
        following = None
    begin = 0.0 if following is None or following[1] is None else following[1] - len(untimed) * step
    yield from ((frame, begin + number * step, True) for number, frame in enumerate(untimed))
    if following is not None:
        yield following
    yield from frames


def rising(times: Sequence[float], earlier: float, last: float, until: float, step: float) -> list[float]:
    """As many times as given, rising, all after `last` (which came after `earlier`) and before `until`.

    The same ones, sorted; where some repeat, as far apart as `last` and `earlier`, if there is room for it.
    """
    good = sorted({time for time in times if time > last})
    if len(good) == len(times):
        return good
    usual = step if earlier == -math.inf else (min if until == math.inf else max)(step, last - earlier)
    if good:
        first, gap = good[0], min(usual, (until - good[0]) / len(times))
    else:
        gap = min(usual, (until - last) / (len(times) + 1))
        first = last + gap
    return [first + number * gap for number in range(len(times))]
