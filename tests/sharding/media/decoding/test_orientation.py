"""Display matrices: all turns and mirrorings, in every container that holds them, as players show them."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.decoding.orientation import UPRIGHT, orientation
from sharding.media.encoder import EncodeSettings
from sharding.media.flow import FlowSettings, dequantised
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import Source
from sharding.media.transcode import VideoSettings, transcode
from tests.sharding.conftest import frames_of
from tests.support.videos.odd_videos import write_video

ONE = 1 << 16
LAST = 1 << 30
MIRRORING = "h264_mp4toannexb,h264_metadata=display_orientation=insert:flip=horizontal"  # bitstream filters
STRAIGHT = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
CROSSED = [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]
EIGHT = STRAIGHT + CROSSED


def matrix(a: float, b: float, c: float, d: float) -> tuple[int, ...]:
    """FFmpeg's nine numbers for x' = a x + c y, y' = b x + d y."""
    return (round(a * ONE), round(b * ONE), 0, round(c * ONE), round(d * ONE), 0, 0, 0, LAST)


def shown(picture: NDArray[np.uint8], a: int, b: int, c: int, d: int) -> NDArray[np.uint8]:
    """The picture, H W C, with each pixel where the matrix puts it."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    turned = np.empty((down.max() + 1, across.max() + 1, 3), np.uint8)
    turned[down, across] = picture
    return turned


def quarters(height: int, width: int) -> NDArray[np.uint8]:
    """Red, green, blue and yellow, from the upper left to the lower right."""
    picture = np.full((height, width, 3), (210, 200, 40), np.uint8)
    picture[: height // 2, : width // 2] = (200, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 180, 40)
    picture[height // 2 :, : width // 2] = (40, 40, 210)
    return picture


def made(path: Path, settings: VideoSettings) -> Clip:
    (found,) = transcode(Source(str(path.parent), path.name), Video(path.name, (0,), "train"), settings)
    assert isinstance(found, Clip)
    return found


def rgb(stored: Clip) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(stored.data)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="rgb24", src_colorspace=5, src_color_range=1, interpolation=16)


def corners(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    height, width = picture.shape[:2]
    places = itertools.product((height // 4, 3 * height // 4), (width // 4, 3 * width // 4))
    return np.array([picture[place] for place in places], np.int64)


@pytest.mark.parametrize("numbers", EIGHT)
@pytest.mark.parametrize("name", ["turned.mp4", "turned.mov", "turned.mkv"])
def test_turned_and_mirrored_videos_are_stored_as_they_are_shown(
    tmp_path: Path, numbers: tuple[int, int, int, int], name: str
) -> None:
    path = write_video(
        tmp_path / name,
        [quarters(144, 176)] * 3,
        options={"qp": "4"},
        prepare=lambda stream: stream.set_display_matrix(matrix(*numbers)),
    )
    expected = shown(quarters(144, 176), *numbers)
    for encode in (EncodeSettings(short_edge=64, crf=6), EncodeSettings(size=(96, 64), crf=6)):
        stored = made(path, VideoSettings(encode=encode))
        size = (expected.shape[1], expected.shape[0])
        assert (stored.width, stored.height) == (encode.size or {(176, 144): (78, 64), (144, 176): (64, 78)}[size])
        assert np.abs(corners(rgb(stored)) - corners(expected)).max() <= 10


@pytest.mark.parametrize("numbers", EIGHT)
def test_only_upright_videos_are_copied(tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
    """A reader of single packets is told of no display matrix."""
    path = write_video(
        tmp_path / "turned.mp4",
        [quarters(144, 176)] * 3,
        prepare=lambda stream: stream.set_display_matrix(matrix(*numbers)),
    )
    copy = VideoSettings(encode=EncodeSettings(copy=True))
    if numbers == (1, 0, 0, 1):
        assert made(path, copy).frames == 3
        return
    with pytest.raises(BadVideo, match="to be shown turned or mirrored") as caught:
        made(path, copy)
    assert caught.value.kind == "unsupported"


def test_flow_is_that_of_the_pictures_as_they_are_shown(tmp_path: Path) -> None:
    """What moves to the right in a picture that is shown mirrored moves to the left."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 30), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [np.repeat(noise[:, 60 - 2 * t : 156 - 2 * t, None], 3, 2) for t in range(5)]

    def sideways(numbers: tuple[int, int, int, int]) -> float:
        path = write_video(
            tmp_path / "moving.mp4",
            [np.ascontiguousarray(frame) for frame in frames],
            options={"qp": "4"},
            prepare=lambda stream: stream.set_display_matrix(matrix(*numbers)),
        )
        found = made(path, VideoSettings(encode=EncodeSettings(crf=6), flow=FlowSettings())).flow
        assert found is not None
        across = dequantised(frames_of(found.data)[0][: found.height], found.bound)[0]
        return float(np.median(across[20:-20, 20:-20]))

    assert sideways((1, 0, 0, 1)) == pytest.approx(2, abs=0.3)
    assert sideways((-1, 0, 0, 1)) == pytest.approx(-2, abs=0.3)


def test_a_matrix_that_changes_midway(tmp_path: Path) -> None:
    """As where another camera goes on: its matrix stands at key frames, and holds till another comes."""
    pictures, plain = [quarters(144, 176)] * 4, {"qp": "4"}
    first = write_video(tmp_path / "first.h264", pictures, options=plain).read_bytes()
    path = write_video(tmp_path / "second.mp4", pictures, options=plain)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        turning = av.bitstream.BitStreamFilterContext(MIRRORING, stream)
        filtered = [p for packet in container.demux(stream) if packet.size for p in turning.filter(packet)]
        second = b"".join(bytes(packet) for packet in [*filtered, *turning.filter(None)])
    (tmp_path / "both.h264").write_bytes(first + second)
    found = made(tmp_path / "both.h264", VideoSettings(encode=EncodeSettings(short_edge=64, crf=6)))
    with av.open(io.BytesIO(found.data)) as container:
        colours = [
            corners(frame.to_ndarray(format="rgb24", src_colorspace=5, src_color_range=1, interpolation=16))
            for frame in container.decode(video=0)
        ]
    assert len(colours) == 8
    for number, colour in enumerate(colours):
        expected = quarters(144, 176) if number < 4 else quarters(144, 176)[:, ::-1]
        assert np.abs(colour - corners(expected)).max() <= 10


def test_angles_between_and_matrices_that_say_nothing() -> None:
    assert orientation(matrix(0, 0, 0, 0)) == UPRIGHT
    assert orientation(matrix(1, 0, 0, 1)) == UPRIGHT == orientation(matrix(0.99999, 0.005, -0.005, 0.99999))
    half = 0.5**0.5
    assert orientation(matrix(half, half, -half, half)).filters == (("rotate", "45*PI/180"),)
    assert orientation(matrix(half, -half, half, half)).filters == (("rotate", "315*PI/180"),)
    assert orientation(matrix(0, 2, -2, 0)).filters == (("transpose", "clock"),)


def test_pictures_with_data_that_pyav_does_not_know(tmp_path: Path) -> None:
    """As a camera's JPEGs with an Exif: what way is up is still read."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    sink = io.BytesIO()
    Image.fromarray(quarters(144, 176)).save(sink, "JPEG", quality=95, exif=exif)
    path = tmp_path / "camera.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuvj420p"
        for number in range(3):
            packet = av.Packet(sink.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            packet.pts = packet.dts = number
            out.mux_one(packet)
    with av.open(str(path)) as container, pytest.raises(ValueError, match="not a valid Type"):
        next(container.decode(video=0)).side_data.get("DISPLAYMATRIX")
    found = made(path, VideoSettings(encode=EncodeSettings(short_edge=64, crf=6)))
    assert (found.width, found.height) == (64, 78)
    assert np.abs(corners(rgb(found)) - corners(np.rot90(quarters(144, 176), -1))).max() <= 12
