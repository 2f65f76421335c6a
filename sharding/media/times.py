"""When each frame is shown: timestamps that repeat, lack, stray or begin anew become times that rise evenly. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

F = TypeVar("F")

NEAR = 1.0  # seconds: a time this little later than the one before it follows it
WINDOW = 16  # frames that are looked at before times that do not rise are settled: as many as a codec reorders


class DecodingTimes:
    """When the frames of a stream are shown whose container knows no other times than those for decoding (AVI).

    A pts is then FFmpeg's guess, and wrong where frames are reordered. But frames come out as evenly as packets go in,
    only later: by the `delay`, which a stream's first frame tells, that stands for its first packet.
    """

    def __init__(self, delay: int | None = None) -> None:
        self.delay = delay
        self._first_packet: int | None = None

    def packet(self, dts: int | None) -> None:
        """A packet goes into the decoder."""
        if self._first_packet is None:
            self._first_packet = dts

    def frame(self, dts: int | None) -> int | None:
        """When a frame is shown that comes out for the packet of that dts; None if nothing says."""
        if self.delay is None and dts is not None and self._first_packet is not None:
            self.delay = dts - self._first_packet
        return None if dts is None else dts - (self.delay or 0)


def evened(frames: Iterable[tuple[F, float | None]], step: float) -> Iterator[tuple[F, float]]:
    """The frames, in order, with times in seconds that rise; those that do are left as they are.

    A frame without a time comes a `step` after the one before it. Times that repeat or change places are put in order
    and spread up to the next one that is later. A single one that strays is put between its neighbours. Where times
    begin anew, as where recordings were put together, those after it follow it.
    """
    coming: Iterator[tuple[F, float | None]] = iter(frames)
    shift = 0.0  # of times that began anew
    last: float | None = None  # the latest of those that went out
    held: list[tuple[F, float, float]] = []  # frame, its time, its time shifted: none later than the first of them
    while (found := next(coming, None)) is not None or held:
        if found is not None:
            frame, given = found
            time = given if given is not None else held[-1][1] + step if held else 0.0
            if given is not None and held and shift > NEAR and 0 < time - held[0][2] <= NEAR:
                shift = 0.0  # those that seemed to begin anew were wrong
            if held and time + shift > held[0][2]:
                times = settled([shown for *_, shown in held], last, time + shift, step)
                yield from zip((each for each, *_ in held), times, strict=True)
                last, held = times[-1], []
            held.append((frame, time, time + shift))
            if len(held) < WINDOW:
                continue
        elif held[0][2] - held[-1][2] <= NEAR:
            times = settled([shown for *_, shown in held], last, None, step)
            yield from zip((each for each, *_ in held), times, strict=True)
            return
        (first, _, at), rest = held[0], [(each, given) for each, given, _ in held[1:]]
        begin, end = rest[0][1], rest[-1][1]
        held = []
        if begin == end or not all(a <= b for (_, a), (_, b) in itertools.pairwise(rest)):  # they say nothing
            rest = [(each, at + number * step - shift) for number, (each, _) in enumerate(rest, 1)]
        elif last is None or begin + shift > last:  # the first one strays
            before = begin + shift - 2 * step if last is None else last
            at = (before + begin + shift) / 2
        else:  # they begin anew
            shift = at + step - begin
        yield first, at
        last = at
        coming = itertools.chain(rest, coming)


def settled(times: Sequence[float], last: float | None, until: float | None, step: float) -> list[float]:
    """As many times that rise, between `last` and `until`: the same ones, put in order, or spread where they repeat.

    The first of `times` is later than `last`, None is later than `until`.
    """
    good = sorted({time for time in times if last is None or time > last})
    if len(good) == len(times):
        return good
    gap = step if last is None or until is None else max(step, good[0] - last)
    if until is not None:
        gap = min(gap, (until - good[0]) / len(times))
    return [good[0] + number * gap for number in range(len(times))]
