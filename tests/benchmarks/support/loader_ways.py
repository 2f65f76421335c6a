"""Ways to get random clips out of stored video: ours, what others offer in their best forms, and bare decoding.

A way is called with nothing and goes once through all clips of a `Task`; it returns the bytes that it read. `sink` gets
each clip's pictures, or the network's input, as the way's users have them: nothing is kept.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pretrain.data.device.tensors import made_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.reading.packets import group_range
from pretrain.data.reading.store_split import Sample, Split
from pretrain.data.sampling.order import Draw, sample_randoms
from pretrain.data.sources import DataSettings, Sources, open_sources, order_of
from pretrain.data.views.frames import train_start
from pretrain.data.views.views import VIEW_RANDOMS, ClipSettings, View, train_view
from pretrain.data.workers.batches import BatchMaker
from sharding.format.record import read_record
from sharding.storage.store import Store
from tests.benchmarks.support.loader_stores import SECONDS

SOON = 0.005  # seconds: times are rounded in a container

Sink = Callable[[Any], object]
Way = Callable[[], int]


@dataclass(frozen=True)
class Wanted:
    """A clip: of which sample, from which frame on, seen how."""

    sample: Sample
    first: int
    start: float  # seconds of it
    view: View
    size: int  # bytes of the sample's mp4

    def body(self, store: Store) -> bytes:
        """The sample's mp4."""
        start = self.sample.packets.start
        return store.get_range(self.sample.tar, start, start + self.size)


@dataclass(frozen=True)
class Task:
    """The same random clips for everyone: `steps` batches of our order, and each of their clips by itself."""

    data: DataSettings
    sources: Sources
    seed: int
    lane_batch: int
    steps: list[list[Draw]]
    clips: list[Wanted]
    tar: Path | None = None  # of the same video as webdataset's users have it

    @property
    def clip(self) -> ClipSettings:
        """What a clip is."""
        return self.data.clip

    @property
    def store(self) -> Store:
        """What the samples lie in."""
        return self.sources.splits[0].store


def task(data: DataSettings, steps: int, lane_batch: int, seed: int = 0, tar: Path | None = None) -> Task:
    """Clips of so many steps of one lane."""
    sources = open_sources(data)
    order = order_of(sources, data, seed, 1, lane_batch)
    drawn = [order.lane(step, 0) for step in range(steps)]
    split = sources.splits[0]
    sizes = {job: read_record(split.store, "train", job)["size"].to_pylist() for job in split.jobs}
    clips = [wanted(split, sizes, data.clip, seed, draw) for draws in drawn for draw in draws]
    return Task(data, sources, seed, lane_batch, drawn, clips, tar)


def wanted(split: Split, sizes: dict[str, list[int]], clip: ClipSettings, seed: int, draw: Draw) -> Wanted:
    """What our loader shows for a draw."""
    sample = split.rows(draw.shard).sample(draw.row)
    start, *view = sample_randoms(seed, draw, split.first(draw.shard) + draw.row, 1 + VIEW_RANDOMS)
    times = sample.times
    first = train_start(sample.frames, clip.needed_frames(times), start)
    seen = train_view(clip, (sample.height, sample.width), view)
    return Wanted(sample, first, float(times[first]), seen, sizes[split.jobs[draw.shard]][draw.row])


def ours(task: Task, floats: bool, sink: Sink) -> Way:
    """What a worker does, in this process."""
    kept = memoryview(bytearray(2**26))
    maker = BatchMaker(task.sources.splits, None, task.clip, lambda size: kept[:size])

    def way() -> int:
        video: torch.Tensor | None = None
        read = 0
        for draws in task.steps:
            batch = maker.training(task.seed, draws)
            read += batch.bytes
            if floats:
                video = network_input(made_batch(batch.planes), task.clip, out=video)  # as the trainer does
            sink(video if floats else batch.planes)
        return read

    return way


def bare(task: Task) -> Way:
    """libavcodec alone: the packets from the key frame before a clip to its last frame, read and wrapped before."""
    fed = []
    codecs: dict[bytes, av.VideoCodecContext] = {}
    for clip in task.clips:
        table, last = clip.sample.packets, clip.first + task.clip.frames - 1
        body, (begin, _) = clip.body(task.store), group_range(table, clip.first, last)
        places = zip(table.offset[begin : last + 1].tolist(), table.size[begin : last + 1].tolist(), strict=True)
        packets = [av.Packet(body[offset : offset + size]) for offset, size in places]
        if table.extradata not in codecs:
            codec = av.CodecContext.create(table.codec, "r")
            codec.extradata, codec.thread_count = table.extradata, 1
            codecs[table.extradata] = codec
        fed.append((codecs[table.extradata], packets))

    def way() -> int:
        for codec, packets in fed:
            for packet in packets:
                codec.decode(packet)
        return 0

    return way


def decord_fresh(task: Task, floats: bool, sink: Sink) -> Way:
    """decord's VideoReader, opened for each clip, as loaders do."""
    from decord import VideoReader, cpu

    size = {"width": 171, "height": 128} if floats else {}

    def way() -> int:
        read = 0
        for clip in task.clips:
            body = clip.body(task.store)
            read += len(body)
            reader = VideoReader(io.BytesIO(body), ctx=cpu(0), num_threads=1, **size)
            rgb = reader.get_batch(range(clip.first, clip.first + task.clip.frames)).asnumpy()
            sink(as_input(rgb, clip.view, task.clip) if floats else rgb)
        return read

    return way


def decord_kept(task: Task, floats: bool, sink: Sink) -> Way:
    """decord with a reader of each sample kept open, which no corpus larger than memory allows."""
    from decord import VideoReader, cpu

    size = {"width": 171, "height": 128} if floats else {}
    readers: dict[str, VideoReader] = {}
    for clip in task.clips:
        if clip.sample.key not in readers:
            readers[clip.sample.key] = VideoReader(io.BytesIO(clip.body(task.store)), ctx=cpu(0), num_threads=1, **size)

    def way() -> int:
        for clip in task.clips:
            rgb = readers[clip.sample.key].get_batch(range(clip.first, clip.first + task.clip.frames)).asnumpy()
            sink(as_input(rgb, clip.view, task.clip) if floats else rgb)
        return 0

    return way


@dataclass
class PyAV:
    """Frames of an mp4 by PyAV, from the key frame before the first to the last, in RGB.

    resized: swscale converts and resizes to 128 x 171 in one go; else it converts only.
    """

    resized: bool
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    def clip(self, body: bytes, start: float, count: int) -> NDArray[np.uint8]:
        """RGB [count, H, W, 3] of the frames from `start` on, in seconds; fewer where the video ends."""
        with av.open(io.BytesIO(body), format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            assert stream.time_base
            first = (start - SOON) / float(stream.time_base)
            container.seek(max(0, int(first)), stream=stream)
            shown = (frame for frame in container.decode(stream) if (frame.pts or 0) >= first)
            return np.stack([self._rgb(frame) for frame in islice(shown, count)])

    def _rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        if self.resized:
            small = self.reformatter.reformat(frame, width=171, height=128, format="rgb24", interpolation="BILINEAR")
            return small.to_ndarray()
        return frame.to_ndarray(format="rgb24")


def pyav(task: Task, resized: bool, floats: bool, sink: Sink) -> Way:
    """PyAV on our samples."""
    reader = PyAV(resized)

    def way() -> int:
        read = 0
        for clip in task.clips:
            body = clip.body(task.store)
            read += len(body)
            rgb = reader.clip(body, clip.start, task.clip.frames)
            sink(as_input(rgb, clip.view, task.clip) if floats else rgb)
        return read

    return way


def today(task: Task, resized: bool, floats: bool, sink: Sink) -> Way:
    """webdataset's pipeline over a tar of videos as libx264 makes them, then PyAV on a random clip of each."""
    import webdataset

    reader, chance = PyAV(resized), random.Random(task.seed)
    dataset = webdataset.WebDataset(str(task.tar), shardshuffle=False).repeat().shuffle(100).to_tuple("mp4", "cls")
    samples = iter(dataset)
    room = SECONDS - 1.0  # a clip fits in wherever it begins

    def way() -> int:
        read = 0
        for clip in task.clips:
            body, _ = next(samples)
            read += len(body)
            rgb = reader.clip(body, room * chance.random(), task.clip.frames)
            assert len(rgb) == task.clip.frames
            sink(as_input(rgb, clip.view, task.clip) if floats else rgb)
        return read

    return way


def torchcodec(task: Task, floats: bool, sink: Sink) -> Way:
    """torchcodec's decoder, opened for each clip; the frames' places are taken from the container's own table."""
    from torchcodec.decoders import VideoDecoder

    def way() -> int:
        read = 0
        for clip in task.clips:
            body = clip.body(task.store)
            read += len(body)
            decoder = VideoDecoder(body, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="approximate")
            rgb = decoder.get_frames_in_range(clip.first, clip.first + task.clip.frames).data.numpy()
            sink(as_input(rgb, clip.view, task.clip) if floats else rgb)
        return read

    return way


def as_input(rgb: NDArray[np.uint8], view: View, clip: ClipSettings) -> torch.Tensor:
    """RGB uint8 [T, H, W, 3] as float32 [3, T, crop, crop], resized unless it is, cropped, mirrored, normalised."""
    pictures = torch.from_numpy(rgb).permute(0, 3, 1, 2)  # T C H W, channels last in memory
    if tuple(pictures.shape[2:]) != view.size:
        pictures = F.interpolate(pictures, view.size, mode="bilinear", align_corners=False)
    pictures = pictures[..., view.top : view.top + clip.crop, view.left : view.left + clip.crop]
    if view.flip:
        pictures = pictures.flip(-1)
    scale = torch.tensor(clip.normalisation.std).mul_(255.0).reciprocal_().view(3, 1, 1, 1)
    shift = -torch.tensor(clip.normalisation.mean).div_(torch.tensor(clip.normalisation.std)).view(3, 1, 1, 1)
    out = torch.empty(3, len(rgb), clip.crop, clip.crop)
    out.copy_(pictures.transpose(0, 1))
    return out.mul_(scale).add_(shift)
