"""Turned, deep, odd-sized and interlaced pictures of any colour are stored as a player shows them."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sharding.media.encoder import EncodeSettings
from tests.support.videos.odd_videos import carphone, write_video
from tests.support.videos.pictures import ENCODE, clip, close, corners, luma, quarters, rgb


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [None, (80, 60)])
def test_turned_videos_are_stored_upright(tmp_path: Path, turn: int, size: tuple[int, int] | None) -> None:
    path = write_video(
        tmp_path / "turned.mp4",
        [quarters(144, 176)] * 4,
        options={"qp": "4"},
        prepare=lambda stream: stream.set_display_rotation(turn),
    )
    stored = clip(path, ENCODE if size is None else EncodeSettings(size=size, crf=6))
    if size is not None:
        assert (stored.width, stored.height) == size
    else:
        assert (stored.width > stored.height) == (turn in (0, 180)) and min(stored.width, stored.height) == 64
    upright = np.rot90(quarters(144, 176), turn // 90)  # a display matrix of 90 turns counter-clockwise
    assert close(corners(rgb(stored)), corners(upright), 10)


@pytest.mark.parametrize(
    ("number", "height"),
    [(1, 144), (6, 720), (5, 144), (9, 144), (2, 144), (2, 720)],
    ids=["bt709", "bt601", "bt601 of 625 lines", "bt2020", "unmarked", "unmarked HD"],
)
@pytest.mark.parametrize("full", [False, True])
def test_every_matrix_and_range_gives_the_same_colours(tmp_path: Path, number: int, height: int, full: bool) -> None:
    """An unmarked video is bt709 if it is 720 lines high."""
    meant = {1: 1, 5: 5, 6: 5, 9: 9, 2: 1 if height >= 720 else 5}[number]
    width = height * 11 // 9 // 2 * 2
    source = av.VideoFrame.from_ndarray(quarters(height, width), format="rgb24").reformat(
        format="yuv420p", dst_colorspace=meant, dst_color_range=2 if full else 1, interpolation=16
    )

    def mark(stream: object) -> None:
        context = stream.codec_context  # type: ignore[attr-defined]
        context.colorspace, context.color_range = number, 2 if full else 1

    def mark_frame(frame: av.VideoFrame) -> None:
        frame.colorspace, frame.color_range = number, 2 if full else 1

    path = write_video(tmp_path / "coloured.mp4", [source] * 3, options={"qp": "2"}, prepare=mark, change=mark_frame)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == number and (frame.color_range == 2) == full
    found = clip(path)
    assert close(corners(rgb(found)), corners(quarters(height, width)), 8)
    assert (found.matrix, found.range) == ("bt601", "tv")


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx265", "yuv420p10le"), ("libx264", "yuv422p"), ("libx264rgb", "rgb24")]
)
def test_deeper_and_finer_pixels(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    options = {"x265-params": "log-level=none:pools=1:qp=4"} if codec == "libx265" else {"qp": "4"}
    path = write_video(tmp_path / "deep.mp4", [quarters(144, 176)] * 4, codec=codec, pix_fmt=pix_fmt, options=options)
    stored = clip(path)
    with av.open(io.BytesIO(stored.data)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert close(corners(rgb(stored)), corners(quarters(144, 176)), 10)


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    picture = quarters(145, 177)
    path = write_video(tmp_path / "odd.mp4", [picture] * 4, pix_fmt="yuv444p", options={"qp": "4"})
    found = clip(path, EncodeSettings(short_edge=128, crf=6))
    assert (found.width, found.height) == (156, 128)
    assert close(corners(rgb(found)), corners(picture), 10)
    assert (clip(path, EncodeSettings(short_edge=400)).width, clip(path, EncodeSettings(short_edge=400)).height) == (
        176,
        144,
    )


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    def prepare(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(12, 11)  # type: ignore[attr-defined]

    path = write_video(tmp_path / "wide.mp4", [quarters(144, 176)] * 4, prepare=prepare)
    found = clip(path)
    assert (found.width, found.height) == (86, 64)
    with av.open(io.BytesIO(found.data)) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1)


def test_interlaced_video_keeps_no_comb(tmp_path: Path) -> None:
    """Two pictures far apart woven into one: only the upper lines' is stored."""
    pictures = carphone(60)
    woven = []
    for number in range(0, 30, 2):
        weave = pictures[number].copy()
        weave[1::2] = 255 - pictures[number][1::2]  # what is later is quite another
        woven.append(weave)
    options = {"qmin": "1", "qmax": "2"}
    weaving = {**options, "flags": "+ildct+ilme", "top": "1"}
    path = write_video(tmp_path / "woven.mkv", woven, codec="mpeg2video", options=weaving)
    with av.open(str(path)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    stored = luma(clip(path))
    calm = luma(clip(write_video(tmp_path / "calm.mkv", pictures[0:30:2], codec="mpeg2video", options=options)))
    assert len(stored) == len(calm) == 15
    assert np.abs(stored.astype(int) - calm).mean() < 8
