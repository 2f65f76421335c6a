"""Benchmark: what each way to store segments costs and keeps, on the tests' real videos.

python -m tests.benchmarks.encoding [--quick] [--out FILE]

A table of encoder settings: transcoded frames a second (one core), bytes a frame, random clips of 16 frames
decoded a second (one core, packets fed to a codec kept open), and SSIM of the luma against the resized source. The
settings in use are the first row; they must keep an SSIM of 0.97 on every video.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sharding.media.decoding.picture import FrameScaler
from sharding.media.encoder import Encoder, EncodeSettings
from sharding.media.h264 import TIME_BASE, packet_table
from tests.benchmarks.support.tables import table, write_figures

FOOTAGE = Path(__file__).parents[1] / "data" / "footage"
VIDEOS = ("balance_cam01.mp4", "bigbuckbunny.mp4", "bikes.mp4", "carphone.mp4", "cup.mp4", "slackline.mp4", "tree.avi")
FRAMES = 240  # of each video: as many as a segment of ten seconds has, at most
CLIP = 16
GOOD = 0.97
COLUMNS = (
    ("", "name", "<44"),
    ("encode f/s", "frames_per_second", ">10.0f"),
    ("bytes/frame", "bytes_per_frame", ">12.0f"),
    ("clips/s", "clips_per_second", ">9.0f"),
    ("SSIM", "ssim", ">7.4f"),
    ("lowest", "lowest_ssim", ">7.4f"),
)


@dataclass(frozen=True)
class Variant:
    """Settings of ours with some of x264's changed."""

    name: str
    settings: EncodeSettings = field(default_factory=EncodeSettings)
    x264: dict[str, Any] = field(default_factory=dict)


def variants(quick: bool) -> list[Variant]:
    """The settings in use, then what differs in one respect."""
    ours = EncodeSettings()
    chosen = [
        Variant("in use"),
        Variant("with CABAC", x264={"cabac": 1}),
        Variant("with deblocking", x264={"no-deblock": 0}),
        Variant("x264's own (CABAC, deblocking, 3 B-frames)", x264={"cabac": 1, "no-deblock": 0, "bframes": 3}),
    ]
    if quick:
        return chosen
    chosen += [
        Variant(f"key frame every {every}", x264={"keyint": every, "min-keyint": every}) for every in (8, 32, 250)
    ]
    chosen += [
        Variant(f"preset {name}", ours.model_copy(update={"preset": name})) for name in ("superfast", "fast", "medium")
    ]
    chosen += [Variant(f"crf {crf}", ours.model_copy(update={"crf": crf})) for crf in (16, 17, 19, 20, 22)]
    chosen.append(Variant("all key frames", x264={"keyint": 1, "min-keyint": 1}))
    return chosen


def source_frames(path: Path, settings: EncodeSettings) -> list[av.VideoFrame]:
    """The first frames of a video as they are to be stored, before any encoder."""
    fitter = FrameScaler(settings.short_edge, 1.0)
    with av.open(str(path)) as container:
        frames: Iterator[av.VideoFrame] = container.decode(video=0)
        return [fitter.scale(frame) for _, frame in zip(range(FRAMES), frames, strict=False)]


def encoded(frames: list[av.VideoFrame], variant: Variant) -> tuple[bytes, float]:
    """The mp4 of these frames, and the seconds it took."""
    encoder = Encoder(variant.settings, 1 / 30, 1.0)
    own = encoder._options()
    known = dict(part.split("=") for part in own["x264-params"].split(":"))
    changed = {**known, **{key: str(value) for key, value in variant.x264.items()}}
    encoder._options = lambda: {**own, "x264-params": ":".join(f"{key}={value}" for key, value in changed.items())}  # type: ignore[method-assign]
    begin = time.perf_counter()
    for number, frame in enumerate(frames):
        if not number:
            encoder._open(frame)
            encoder.stream.codec_context.gop_size = int(changed["keyint"])
            encoder.stream.codec_context.max_b_frames = int(changed["bframes"])
        frame.pts, frame.time_base = number * 3000, TIME_BASE
        encoder.container.mux(encoder.stream.encode(frame))
    encoder.container.mux(encoder.stream.encode(None))
    encoder.container.close()
    return encoder.sink.getvalue(), time.perf_counter() - begin


def decoded(data: bytes) -> list[NDArray[np.uint8]]:
    """Every frame's luma, in the order shown."""
    with av.open(io.BytesIO(data)) as container:
        return [luma(frame) for frame in container.decode(video=0)]


def luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """H W."""
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width].copy()


def clips_per_second(data: bytes, seconds: float) -> float:
    """Random clips of 16 consecutive frames decoded by one thread, from the key frame before them."""
    table = packet_table(data)
    packets = [
        data[offset : offset + size] for offset, size in zip(table["packet_offset"], table["packet_size"], strict=True)
    ]
    keys = np.flatnonzero(table["packet_key"])
    codec = av.VideoCodecContext.create("h264", "r")
    codec.extradata, codec.thread_count = table["extradata"], 1
    draw = random.Random(0)
    count, begin = 0, time.perf_counter()
    while (taken := time.perf_counter() - begin) < seconds:
        start = draw.randrange(len(packets) - CLIP + 1)
        first = int(keys[keys <= start][-1])
        kept = 0
        for number in range(first, start + CLIP):
            kept += len(codec.decode(av.Packet(packets[number])))
        kept += len(codec.decode(None))
        codec.flush_buffers()
        assert kept >= CLIP
        count += 1
    return count / taken


def ssim(ours: NDArray[np.uint8], source: NDArray[np.uint8]) -> float:
    """Structural similarity of two pictures, H W, with the Gaussian window of Wang et al. (2004)."""
    a, b = (torch.from_numpy(picture.astype(np.float64))[None, None] for picture in (ours, source))
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    line /= line.sum()

    def blurred(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(value.mean())


def measured(variant: Variant, sources: dict[str, list[av.VideoFrame]], seconds: float) -> dict[str, Any]:
    """A row of the table: means over the videos, and the lowest SSIM of one."""
    rows = []
    for frames in sources.values():
        data, taken = encoded(frames, variant)
        looks = range(0, len(frames), 10)
        shown = decoded(data)
        assert len(shown) == len(frames)
        rows.append(
            {
                "frames_per_second": len(frames) / taken,
                "bytes_per_frame": len(data) / len(frames),
                "clips_per_second": clips_per_second(data, seconds),
                "ssim": sum(ssim(shown[look], luma(frames[look])) for look in looks) / len(looks),
            }
        )
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return {
        "name": variant.name,
        **means,
        "lowest_ssim": min(row["ssim"] for row in rows),
        "videos": dict(zip(sources, rows, strict=True)),
    }


def main() -> None:
    """Measure every variant on every video, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few variants, on three videos")
    parser.add_argument("--out", type=Path, default=Path("bench/encoding.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = VIDEOS[:3] if args.quick else VIDEOS
    sources = {name: source_frames(FOOTAGE / name, EncodeSettings()) for name in names}
    rows = [measured(variant, sources, 0.2 if args.quick else 1.0) for variant in variants(args.quick)]
    print(table(rows, COLUMNS))
    print(f"in use, on every video at least {GOOD}: {rows[0]['lowest_ssim'] >= GOOD}")
    write_figures(args.out, rows)


if __name__ == "__main__":
    main()
