"""Optical flow: the motion that was there, as many pictures as frames, errors measured, the same bytes everywhere."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sharding.base.errors import UserError
from sharding.media.decoding.picture import FrameScaler
from sharding.media.flow import FlowClip, FlowEncoder, FlowSettings, dequantised, luma_of, optical_flow, quantised

FOOTAGE = Path(__file__).parents[2] / "data" / "footage"
STEP = 20 / 127  # px


def frames_of(name: str, count: int, short_edge: int = 128) -> list[NDArray[np.uint8]]:
    fitter = FrameScaler(short_edge, 1.0)
    with av.open(str(FOOTAGE / name)) as container:
        frames = zip(range(count), container.decode(video=0), strict=False)
        return [luma_of(fitter.scale(frame)).copy() for _, frame in frames]


def encoded(frames: list[NDArray[np.uint8]], settings: FlowSettings | None = None) -> FlowClip:
    encoder = FlowEncoder(settings or FlowSettings(), 16)
    for number, frame in enumerate(frames):
        encoder.add(frame, 3003 * number)
    clip = encoder.finish()
    assert clip is not None
    return clip


def decoded(clip: FlowClip) -> list[NDArray[np.float32]]:
    with av.open(io.BytesIO(clip.data)) as container:
        return [dequantised(luma_of(picture), clip.bound) for picture in container.decode(video=0)]


@pytest.mark.parametrize(("dx", "dy"), [(3, -2), (0, 0), (-6, 5), (1, 0)])
def test_a_known_motion_is_found(dx: int, dy: int) -> None:
    """A camera that passes over a real picture: what it shows moves by (dx, dy)."""
    whole = frames_of("slackline.mp4", 1, 240)[0]
    corners = [(60 - dy * number, 160 - dx * number) for number in range(6)]
    clip = encoded([whole[y : y + 96, x : x + 128] for y, x in corners])
    assert (clip.width, clip.height, clip.frames) == (128, 192, 6)
    inside = np.stack(decoded(clip))[:, :, 20:-20, 20:-20]  # what enters at the edges has no motion to be found
    assert np.abs(np.median(inside, axis=(0, 2, 3)) - (dx, dy)).max() < 0.12
    assert clip.stored_error < 0.1 and clip.clipped < 0.01


@pytest.mark.parametrize("name", ["carphone.mp4", "bikes.mp4"])
def test_real_footage_and_its_errors(name: str) -> None:
    import cv2

    frames = frames_of(name, 40)
    clip = encoded(frames)
    assert clip.frames == len(frames)
    true = [
        np.moveaxis(cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0), 2, 0)
        for a, b in itertools.pairwise(frames)
    ]
    true.append(true[-1])
    cut = np.clip(np.stack(true), -20, 20)
    there = np.stack(decoded(clip))
    assert there.shape == (40, 2, *frames[0].shape)
    assert clip.stored_error == pytest.approx(np.abs(there - cut).mean(), rel=1e-3)
    rounded = np.stack([dequantised(quantised(flow, 20.0), 20.0) for flow in cut])
    assert clip.quantisation_error == pytest.approx(np.abs(rounded - cut).mean(), rel=1e-3)
    assert clip.clipped == pytest.approx((np.abs(np.stack(true)) > 20).mean(), abs=1e-4)
    assert clip.quantisation_error < STEP / 3 and clip.stored_error < 2 * clip.quantisation_error
    assert clip.stored_error < 0.2 * np.abs(cut).mean()


def test_the_packets_are_the_frames() -> None:
    """A reader that feeds packets by the table to a codec kept open gets the same pictures."""
    clip = encoded(frames_of("carphone.mp4", 20, 64))
    assert clip.packet_pts.tolist() == [3003 * number for number in range(20)]
    assert clip.packet_key.nonzero()[0].tolist() == [0, 16]
    codec = av.CodecContext.create("h264", "r")
    codec.extradata = clip.extradata
    pictures = []
    for start, size in zip(clip.packet_offset.tolist(), clip.packet_size.tolist(), strict=True):
        pictures += codec.decode(av.Packet(clip.data[start : start + size]))
    pictures += codec.decode(None)
    there = [dequantised(luma_of(picture), clip.bound) for picture in pictures]
    assert np.array_equal(there, decoded(clip))
    assert np.abs(there[19] - there[18]).mean() < 0.02  # the last repeats the one before
    with av.open(io.BytesIO(clip.data)) as container:
        assert container.streams.video[0].codec_context.color_range == 2  # full
        assert not container.streams.video[0].codec_context.has_b_frames
        colours = {int(value) for p in container.decode(video=0) for value in p.to_ndarray()[clip.height :].ravel()}
    assert colours == {128}


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8), st.floats(0.5, 1000.0))
def test_eight_bits_are_half_a_step_off_at_most(values: list[float], bound: float) -> None:
    flow = np.array(values, np.float32).reshape(2, 2, 2)
    luma = quantised(flow, bound)
    assert luma.shape == (4, 2) and luma.min() >= 1
    off = np.abs(dequantised(luma, bound) - np.clip(flow, -bound, bound))
    assert off.max() <= bound / 127 * 0.5001
    assert np.all(dequantised(luma, bound)[flow == 0] == 0)


def test_faster_motion_than_the_bound_is_cut_and_counted() -> None:
    whole = frames_of("slackline.mp4", 1, 240)[0]
    frames = [whole[60:156, 160 - 4 * number :][:, :128] for number in range(4)]
    clip = encoded(frames, FlowSettings(bound=2.0))
    assert 0.3 < clip.clipped < 0.6  # nearly all of dx, next to nothing of dy
    assert np.max(decoded(clip)) <= 2.0 and np.median(np.stack(decoded(clip))[:, 0]) == pytest.approx(2.0, abs=0.1)


def test_less_than_two_frames_have_no_flow() -> None:
    encoder = FlowEncoder(FlowSettings(), 16)
    assert encoder.finish() is None
    encoder.add(np.zeros((32, 32), np.uint8), 0)
    assert encoder.finish() is None


def test_a_still_picture_without_texture_moves_nowhere() -> None:
    clip = encoded([np.full((32, 32), 90, np.uint8)] * 3)
    assert not np.any(decoded(clip)) and clip.stored_error == 0


def motion_digest() -> str:
    """sha256 of the computed motion, before anything rounds it."""
    found = [optical_flow(*pair).tobytes() for pair in itertools.pairwise(frames_of("slackline.mp4", 8))]
    return hashlib.sha256(b"".join(found)).hexdigest()


def test_the_same_bits_with_any_threads_on_any_processor() -> None:
    """OpenCV told to use only what every x86 processor has."""
    import cv2

    older = {"OPENCV_CPU_DISABLE": "AVX2,FMA3,AVX", "OPENCV_IPP": "disabled"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", "import tests.sharding.media.test_flow as t; print(t.motion_digest())"],
        env={**os.environ, **older},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    before = cv2.useOptimized(), cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        assert elsewhere.stdout.strip() == motion_digest()
        assert (cv2.useOptimized(), cv2.getNumThreads()) == (before[0], 3)
    finally:
        cv2.setNumThreads(before[1])


def test_the_same_frames_give_the_same_bytes() -> None:
    frames = frames_of("carphone.mp4", 12, 64)
    assert encoded(frames).data == encoded([np.asfortranarray(frame) for frame in frames]).data


def test_every_processor_encodes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As this one does without any of its faster instructions."""
    frames = frames_of("bikes.mp4", 100, 64)
    expected = encoded(frames).data
    options = FlowEncoder._options

    def limited(self: FlowEncoder) -> dict[str, str]:
        ours = options(self)
        return {**ours, "x264-params": f"{ours['x264-params']}:asm=0"}

    monkeypatch.setattr(FlowEncoder, "_options", limited)
    assert encoded(frames).data == expected


def test_without_opencv_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="optical flow needs OpenCV") as caught:
        FlowEncoder(FlowSettings(), 16)
    assert "pip install 'reelscale[flow]'" in caught.value.remedy
