"""Benchmark: decoded pictures to a network's input on one core, ours beside what others do, on the tests' real videos.

python -m tests.benchmarks.transforms [--quick] [--out FILE]

Clips of 16 frames of 128 short edge, resized to 128 x 171, cut to 112 x 112 at random, half of them mirrored: clips a
second of the calling thread's processor time, best of the rounds, which the contenders take in turn. `error` is the
largest difference from exact arithmetic, of 255 levels; what swscale converts differs where chroma changes, since it
places chroma samples otherwise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.device.tensors import plane_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.reading.decode import Planes
from pretrain.data.views.views import ClipSettings, View, train_view
from sharding.media.encoder import EncodeSettings
from tests.benchmarks.encoding import FOOTAGE, source_frames

VIDEOS = ("balance_cam01.mp4", "carphone.mp4", "slackline.mp4")
CLIP = ClipSettings()
BATCH = 8
PLAIN = "torch: interpolate, RGB as uint8, normalise"


def clips_of(video: str) -> tuple[list[list[av.VideoFrame]], list[Planes], list[View]]:
    """A batch of a video: frames as stored, their planes, and a view of each clip."""
    frames = source_frames(FOOTAGE / video, EncodeSettings())
    draw = np.random.default_rng(0)
    starts = [int(draw.random() * (len(frames) - CLIP.frames + 1)) for _ in range(BATCH)]
    clips = [frames[start : start + CLIP.frames] for start in starts]
    planes = [planes_of(clip) for clip in clips]
    return clips, planes, [train_view(CLIP, each.y.shape[1:], draw.random(4)) for each in planes]


def planes_of(frames: list[av.VideoFrame]) -> Planes:
    """The planes of yuv420p frames."""
    whole = np.stack([frame.to_ndarray(format="yuv420p") for frame in frames])
    height, width = frames[0].height, frames[0].width
    uv = whole[:, height:].reshape(len(frames), 2, height // 2, width // 2)
    return Planes(np.ascontiguousarray(whole[:, :height]), np.ascontiguousarray(uv), "bt601")


def plain(planes: list[Planes], views: list[View]) -> Tensor:
    """As it is usually written in torch: clip by clip to RGB of whole levels, then a batch of floats."""
    clips = torch.stack([rgb_clip(clip, view) for clip, view in zip(planes, views, strict=True)])
    return normalised(clips)


def rgb_clip(planes: Planes, view: View) -> Tensor:
    """A clip's RGB, uint8 [3, T, crop, crop]."""
    rows, columns = slice(view.top, view.top + CLIP.crop), slice(view.left, view.left + CLIP.crop)
    y = resized(torch.from_numpy(planes.y).unsqueeze(1), view)[:, 0, rows, columns]
    uv = resized(torch.from_numpy(planes.uv), view)[:, :, rows, columns] - 128.0
    y = (y - 16.0) * (255.0 / 219.0)
    u, v = uv[:, 0] * (255.0 / 224.0), uv[:, 1] * (255.0 / 224.0)
    red = y + 1.402 * v
    green = y - (1.772 * 0.114 / 0.587) * u - (1.402 * 0.299 / 0.587) * v
    blue = y + 1.772 * u
    rgb = torch.stack([red, green, blue]).round_().clamp_(0.0, 255.0).to(torch.uint8)
    return rgb.flip(-1) if view.flip else rgb


def resized(frames: Tensor, view: View) -> Tensor:
    """Frames [T, C, h, w] at the view's size, in floats."""
    frames = frames.float()
    if tuple(frames.shape[-2:]) == view.size:
        return frames
    shrinks = frames.shape[-2] > view.size[0] or frames.shape[-1] > view.size[1]
    return F.interpolate(frames, size=view.size, mode="bilinear", align_corners=False, antialias=shrinks)


def normalised(clips: Tensor) -> Tensor:
    """(x / 255 - mean) / std of [N, 3, T, H, W]."""
    mean = torch.tensor(CLIP.normalisation.mean).mul(255.0).view(1, 3, 1, 1, 1)
    scale = torch.tensor(CLIP.normalisation.std).mul(255.0).reciprocal().view(1, 3, 1, 1, 1)
    return (clips.float() - mean) * scale


def by_swscale(clips: list[list[av.VideoFrame]], views: list[View], resize: bool) -> Tensor:
    """PyAV's frames to RGB by swscale, which resizes them too where `resize`; torch does the rest."""
    shown = []
    for clip, view in zip(clips, views, strict=True):
        size = {"width": view.size[1], "height": view.size[0]} if resize else {}
        rgb = np.stack([frame.to_ndarray(format="rgb24", **size) for frame in clip])
        frames = torch.from_numpy(rgb).permute(0, 3, 1, 2)  # T C H W
        frames = frames if resize else resized(frames, view)
        frames = frames[..., view.top : view.top + CLIP.crop, view.left : view.left + CLIP.crop]
        shown.append((frames.flip(-1) if view.flip else frames).transpose(0, 1))
    return normalised(torch.stack(shown))


def exact(planes: list[Planes], views: list[View]) -> Tensor:
    """The same in double precision and without rounding to whole levels."""
    shown = []
    for clip, view in zip(planes, views, strict=True):
        y, uv = torch.from_numpy(clip.y).double().unsqueeze(1), torch.from_numpy(clip.uv).double()
        shrinks = y.shape[-2] > view.size[0] or y.shape[-1] > view.size[1]
        resize = partial(F.interpolate, size=view.size, mode="bilinear", align_corners=False)
        y, uv = (resize(y, antialias=True) if shrinks else resize(y)) - 16, resize(uv) - 128
        y, u, v = y[:, 0] * (255 / 219), uv[:, 0] * (255 / 224), uv[:, 1] * (255 / 224)
        green = y - (1.772 * 0.114 * u + 1.402 * 0.299 * v) / 0.587
        rgb = torch.stack([y + 1.402 * v, green, y + 1.772 * u]).clamp(0, 255)
        rgb = rgb[..., view.top : view.top + CLIP.crop, view.left : view.left + CLIP.crop]
        shown.append(rgb.flip(-1) if view.flip else rgb)
    mean, std = (
        torch.tensor(each).double().view(1, 3, 1, 1, 1) for each in (CLIP.normalisation.mean, CLIP.normalisation.std)
    )
    return (torch.stack(shown) / 255 - mean) / std


def contenders(
    clips: list[list[av.VideoFrame]], planes: list[Planes], views: list[View]
) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name; each makes a batch of the network's input."""
    out = torch.empty(len(planes), 3, CLIP.frames, CLIP.crop, CLIP.crop)
    return {
        PLAIN: partial(plain, planes, views),
        "PyAV: swscale to RGB; torch: interpolate, normalise": partial(by_swscale, clips, views, False),
        "PyAV: swscale to RGB and size; torch: normalise": partial(by_swscale, clips, views, True),
        "ours": lambda: network_input(plane_batch(planes, views), CLIP),
        "ours, into the same memory": lambda: network_input(plane_batch(planes, views), CLIP, out),
    }


def compare(video: str, rounds: int) -> list[dict[str, Any]]:
    """A row a contender: clips a second and the largest error, of 255 levels."""
    clips, planes, views = clips_of(video)
    ways = contenders(clips, planes, views)
    std = torch.tensor(CLIP.normalisation.std).view(1, 3, 1, 1, 1)
    there = exact(planes, views)
    errors = {name: float(((way() - there) * std * 255).abs().max()) for name, way in ways.items()}
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.thread_time()
            way()
            seconds[name] = min(seconds[name], time.thread_time() - begin)
    return [
        {"video": video, "size": list(planes[0].y.shape[1:]), "way": name, "error": errors[name],
         "clips_per_second": len(planes) / seconds[name], "times_plain": seconds[PLAIN] / seconds[name]}
        for name in ways
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| video | way | clips/s | × plain torch | error |", "|---|---|---|---|---|"]
    for row in rows:
        video = f"{row['video']}, {row['size'][0]} × {row['size'][1]}"
        figures = f"{row['clips_per_second']:.0f} | {row['times_plain']:.2f} | {row['error']:.4f}"
        lines.append(f"| {video} | {row['way']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one video, few rounds")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for video in VIDEOS[: 1 if args.quick else None] for row in compare(video, rounds=3 if args.quick else 40)
    ]
    print(table(rows))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
