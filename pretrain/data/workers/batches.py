"""Makes a batch: decides which frames of which samples it shows and how, and decodes them into one memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.data.reading.computed_flow import BOUND, compute_flow_into, frames_compared
from pretrain.data.reading.decode import Window, decode_flow_into, decode_into, plane_matrix
from pretrain.data.reading.packets import byte_ranges
from pretrain.data.reading.prefetch import ByteRange, Prefetcher
from pretrain.data.reading.store_split import DamagedData, RangeReader, Sample, Split
from pretrain.data.sampling.order import Draw, mix, sample_randoms
from pretrain.data.views.frames import evaluation_starts, is_looped, train_start
from pretrain.data.views.resample import source_window
from pretrain.data.views.views import VIEW_RANDOMS, ClipSettings, Input, View, centre_view, evaluation_views, train_view
from pretrain.data.workers.planes import BatchPlanes, Memory, plane_arrays
from sharding.base.errors import UserError
from sharding.storage.counters import Counters

_TRIES = 100
_SUBSTITUTE = 3  # the word that tells this hash from the order's


class SampleReader(Protocol):
    """Samples by their numbers: those of a store's split, or of a video in memory."""

    @property
    def source(self) -> RangeReader:
        """What their bytes are read from."""

    @property
    def counters(self) -> Counters:
        """The requests for bytes, so far."""

    def sample(self, number: int) -> Sample:
        """One of them. Raises DamagedData."""


@dataclass
class Batch:
    """A made batch: `keys`, `labels` and `counts` (of clips) of the samples it shows, in order.

    `damaged`: what was met and left out; `looped`: clips of videos that are shorter than a clip; `seconds` that
    making it took, `decode_seconds` of each clip, `bytes` that were read for it, and `retries` of these reads.
    """

    planes: BatchPlanes
    keys: list[str]
    labels: list[tuple[int, ...]]
    counts: list[int]
    damaged: list[DamagedData] = field(default_factory=list)
    looped: int = 0
    seconds: float = 0.0
    decode_seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    retries: int = 0


@dataclass(frozen=True)
class _Shown:
    """One clip: its sample, the numbers of its frames, how they are seen, and whether some come twice.

    `others`: the views of it that its planes have to hold, too.
    """

    source: RangeReader
    sample: Sample
    frames: Sequence[int]
    view: View
    looped: bool
    others: Sequence[View] = ()


class _Lost(Exception):
    """A clip of the batch cannot be made."""

    def __init__(self, clip: int, damaged: DamagedData) -> None:
        super().__init__(clip, damaged)
        self.clip, self.damaged = clip, damaged


class BatchMaker:
    """Makes batches of stores' training splits, and of one that is evaluated on: what a worker does.

    `memory(size)` gives writable bytes for the planes of the batch that is made next.
    """

    def __init__(
        self, splits: Sequence[Split], unseen: SampleReader | None, clip: ClipSettings, memory: Memory
    ) -> None:
        self.splits, self.unseen, self.clip, self.memory = splits, unseen, clip, memory
        every = [each.counters for each in [*splits, *([unseen] if unseen else [])]]
        self._counters = list({id(counters): counters for counters in every}.values())
        self._lost: dict[tuple[int, ...], DamagedData] = {}
        self._seen: set[tuple[int, str]] = set()
        self._decode_seconds: list[float] = []  # of each clip of the batch that is made

    def training(self, seed: int, draws: Sequence[Draw]) -> Batch:
        """One clip of each draw: the same wherever it is made.

        In the place of a damaged sample stands another of the same store, found by a hash of the damaged one's place.
        Raises UserError if a hundred of these are damaged, too.
        """
        begin, damaged = self._begin(), list[DamagedData]()
        places = [self._places(seed, draw, damaged) for draw in draws]
        now = [next(place) for place in places]
        while True:
            try:
                shown = [self._training_clip(seed, draw, *place) for draw, place in zip(draws, now, strict=True)]
                planes = self._planes(shown)
                break
            except _Lost as lost:
                self._lost[draws[lost.clip].store, *now[lost.clip][:2]] = lost.damaged
                damaged.append(lost.damaged)
                now[lost.clip] = next(places[lost.clip])
        return self._batch(planes, [[clip] for clip in shown], damaged, begin)

    def evaluation(self, numbers: Sequence[int], clips: int, crops: int = 1) -> Batch:
        """The uniform clips of each of these samples of the split `unseen`, seen in their centre.

        Their planes hold all views of `crops` (`evaluation_views`). A short video gives one clip. A damaged sample is
        left out, and stands in the batch's `damaged`: one for each.
        """
        begin, damaged, shown = self._begin(), list[DamagedData](), list[list[_Shown]]()
        for number in numbers:
            try:
                shown.append(self._evaluation_clips(number, clips, crops))
            except DamagedData as error:
                damaged.append(error)
        while True:
            try:
                planes = self._planes([clip for video in shown for clip in video])
                break
            except _Lost as lost:
                damaged.append(lost.damaged)
                ends = itertools.accumulate(map(len, shown))
                del shown[next(place for place, end in enumerate(ends) if lost.clip < end)]
        return self._batch(planes, shown, damaged, begin)

    def _places(self, seed: int, draw: Draw, damaged: list[DamagedData]) -> Iterator[tuple[int, int, Sample]]:
        """(shard, row, sample) of the draw, then of those that may stand in its place; none known to be damaged."""
        split = self.splits[draw.store]
        for attempt in range(_TRIES):
            try:
                if attempt:
                    words = mix(seed, _SUBSTITUTE, draw.pass_number, draw.store, draw.shard, draw.row, attempt)
                    shard, row = split.place(int(words[0] % np.uint64(len(split))))
                else:
                    shard, row = draw.shard, draw.row
                if (damage := self._lost.get((draw.store, shard))) is None:
                    rows = split.rows(shard)
                    if not attempt and draw.label >= 0:
                        row = rows.row_with(draw.label, row)
                    if (damage := self._lost.get((draw.store, shard, row))) is None:
                        sample = rows.sample(row)
                        self._look_at(draw.store, sample.tar, damaged)
                        yield shard, row, sample
                        continue
            except DamagedData as error:
                damage = self._lost[draw.store, shard] = error
            damaged.append(damage)
        raise UserError(
            f"{_TRIES} samples, one after the other, are damaged:\n" + "\n".join(dict.fromkeys(map(str, damaged))),
            split.store.url,
            "see what is left of it: reelscale shards verify STORE",
        )

    def _look_at(self, store: int, tar: str, damaged: list[DamagedData]) -> None:
        """Once for each tar: one that is too short has lost samples, whether or not these are shown soon."""
        if (store, tar) not in self._seen:
            self._seen.add((store, tar))
            if tar_size_damage := self.splits[store].tar_size_damage(tar):
                damaged.append(tar_size_damage)

    def _training_clip(self, seed: int, draw: Draw, shard: int, row: int, sample: Sample) -> _Shown:
        split = self.splits[draw.store]
        start, *view = sample_randoms(seed, draw, split.first(shard) + row, 1 + VIEW_RANDOMS)
        times = self._times(sample)
        needed = self.clip.needed_frames(times)
        frames = self.clip.frame_numbers(times, train_start(sample.frames, needed, start))
        seen = train_view(self.clip, (sample.height, sample.width), view)
        return _Shown(split.source, sample, frames, seen, is_looped(sample.frames, needed))

    def _times(self, sample: Sample) -> Sequence[float] | NDArray[np.float64]:
        """When its frames are shown; where only their number matters, that."""
        return sample.times if self.clip.fps else range(sample.frames)

    def _evaluation_clips(self, number: int, clips: int, crops: int) -> list[_Shown]:
        assert self.unseen is not None
        sample = self.unseen.sample(number)
        times = self._times(sample)
        needed = self.clip.needed_frames(times)
        size, looped = (sample.height, sample.width), is_looped(sample.frames, needed)
        view, views = centre_view(self.clip, size), evaluation_views(self.clip, size, crops)
        return [
            _Shown(self.unseen.source, sample, self.clip.frame_numbers(times, first), view, looped, views)
            for first in evaluation_starts(sample.frames, needed, clips)
        ]

    def _planes(self, shown: list[_Shown]) -> BatchPlanes:
        windows = [_window(clip, self.clip.crop) for clip in shown]
        height = max((window.rows.stop - window.rows.start for window in windows), default=0)
        width = max((window.columns.stop - window.columns.start for window in windows), default=0)
        arrays = plane_arrays(self.memory, (len(shown), self.clip.frames, height, width), self.clip.input)
        videos = [list(clips) for _, clips in itertools.groupby(shown, key=lambda clip: id(clip.sample))]
        self._expect(videos)
        first, self._decode_seconds = 0, []
        for video in videos:  # decoded in one pass
            begin = time.perf_counter()
            count = len(video)
            y, uv, steps = (None if each is None else _in_a_row(each[first : first + count]) for each in arrays)
            try:
                if y is not None and uv is not None:
                    decode_into(video[0].source, video[0].sample, _frames(video), windows[first], y, uv)
                if steps is not None:
                    _flow_into(video, windows[first], steps)
            except DamagedData as error:
                raise _Lost(first, error) from error
            first += count
            self._decode_seconds += [(time.perf_counter() - begin) / count] * count
        return BatchPlanes(
            *arrays,
            [(clip.sample.height, clip.sample.width) for clip in shown],
            [(window.rows.start, window.columns.start) for window in windows],
            [plane_matrix(clip.sample) for clip in shown],
            [clip.sample.flow.bound if clip.sample.flow else BOUND for clip in shown],
            [clip.view for clip in shown],
        )

    def _expect(self, videos: list[list[_Shown]]) -> None:
        """Have the byte ranges prefetched that the batch needs, of sources that do so."""
        coming: dict[int, tuple[Prefetcher, list[ByteRange]]] = {}
        for video in videos:
            source, sample = video[0].source, video[0].sample
            if isinstance(source, Prefetcher):
                _, expected = coming.setdefault(id(source), (source, []))
                expected += _ranges(sample, _frames(video), self.clip.input)
        for prefetcher, expected in coming.values():
            prefetcher.expect(expected)

    def _begin(self) -> tuple[float, int, int]:
        """The time, and what stores counted so far: bytes and retries."""
        counters = self._counters
        return time.perf_counter(), sum(each.bytes for each in counters), sum(each.retries for each in counters)

    def _batch(
        self,
        planes: BatchPlanes,
        shown: list[list[_Shown]],
        damaged: list[DamagedData],
        begin: tuple[float, int, int],
    ) -> Batch:
        seconds, read, retries = (now - then for now, then in zip(self._begin(), begin, strict=True))
        return Batch(
            planes,
            keys=[video[0].sample.key for video in shown],
            labels=[video[0].sample.labels for video in shown],
            counts=[len(video) for video in shown],
            damaged=damaged,
            looped=sum(clip.looped for video in shown for clip in video),
            seconds=seconds,
            decode_seconds=self._decode_seconds,
            bytes=int(read),
            retries=int(retries),
        )


def _frames(video: list[_Shown]) -> list[int]:
    return [frame for clip in video for frame in clip.frames]


def _in_a_row(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames of clips [N, T, …], one after the other: [N · T, …]."""
    return clips.reshape(-1, *clips.shape[2:])


def _flow_into(video: list[_Shown], window: Window, steps: NDArray[np.uint8]) -> None:
    """The flow of a video's clips, as stored; computed where it is not."""
    source, sample, frames = video[0].source, video[0].sample, _frames(video)
    if sample.flow is not None:
        decode_flow_into(source, sample, sample.flow, frames, window, steps)
    else:
        compute_flow_into(source, sample, frames, window, steps)


def _ranges(sample: Sample, frames: list[int], shown: Input) -> list[ByteRange]:
    """The byte ranges that are read for these frames as they are shown: pictures, flow or both."""
    ranges = [] if shown == "flow" else byte_ranges(sample.packets, frames)
    if shown == "rgb":
        return ranges
    if sample.flow is None:
        return ranges + byte_ranges(sample.packets, frames_compared(sample, frames))
    return ranges + byte_ranges(sample.flow.packets, frames)


def _window(clip: _Shown, crop: int) -> Window:
    """The part of a clip's pictures that its views are made of. All clips of one sample in a batch have the same."""
    sample, views = clip.sample, [clip.view, *clip.others]
    rows = [source_window(sample.height, view.size[0], view.top, crop) for view in views]
    columns = [source_window(sample.width, view.size[1], view.left, crop) for view in views]
    return Window(_hull(rows), _hull(columns))


def _hull(windows: Sequence[tuple[int, int]]) -> slice:
    return slice(min(begin for begin, _ in windows), max(end for _, end in windows))
