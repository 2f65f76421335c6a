"""Concealed damage: the frames that are counted are those that differ from the sound video's, and no others."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sharding.corpora.manifest import Video
from sharding.format import record
from sharding.inspect.summary import summary
from sharding.inspect.verify import verify
from sharding.make.shard import ShardSettings
from sharding.media.clip import Clip
from sharding.media.decoding.concealment import has_zero_run
from sharding.media.decoding.reader import Reader
from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import SegmentSettings
from sharding.media.input.source import Source
from sharding.media.input.validity import DecodeStats, judge_concealed
from sharding.media.transcode import SegmentFailure, VideoSettings, transcode
from sharding.storage.store import open_store
from tests.sharding.conftest import FOOTAGE
from tests.support.stores import shard
from tests.support.videos.odd_videos import write_video

GOP = 24
FRAMES = 100
VISIBLE = 100.0  # mean squared difference of a block of 16 x 16 pixels
X264 = {"g": f"{GOP}", "sc_threshold": "0", "preset": "veryfast"}
X265 = f"log-level=none:pools=1:keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=3"
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "b.mp4": ("libx264", X264),
    "slices.avi": ("libx264", {**X264, "bf": "0", "x264-params": "slices=4:cabac=0"}),
    "open.mkv": ("libx264", {**X264, "x264-params": "open-gop=1"}),
    "b.ts": ("libx264", X264),
    "refreshed.ts": ("libx264", {**X264, "x264-params": "intra-refresh=1"}),
    "hevc.mkv": ("libx265", {"x265-params": f"{X265}:open-gop=0"}),
    "hevc.mp4": ("libx265", {"x265-params": f"{X265}:open-gop=0"}),
    "hevc.ts": ("libx265", {"x265-params": f"{X265}:open-gop=1"}),
    "mpeg4.avi": ("mpeg4", {"g": f"{GOP}"}),
    "mpeg4b.mp4": ("mpeg4", {"g": f"{GOP}", "bf": "2"}),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}),
    "mpeg2.mkv": ("mpeg2video", {"g": "12", "bf": "2"}),
    "flash.flv": ("flv", {"g": f"{GOP}"}),
    "vp9.webm": ("libvpx-vp9", {"g": f"{GOP}", "deadline": "realtime", "cpu-used": "8"}),
    "vp9.mkv": ("libvpx-vp9", {"g": f"{GOP}", "deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": ("libvpx", {"g": f"{GOP}", "deadline": "realtime", "cpu-used": "8"}),
    "av1.mp4": ("libsvtav1", {"g": f"{GOP}", "preset": "12", "svtav1-params": "lp=1"}),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A sound video of each kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("sound")

    def made(kind: str) -> Path:
        codec, options = KINDS[kind]
        path = folder / kind
        return path if path.exists() else write_video(path, codec=codec, options=options)

    return made


def counted(path: Path, threads: int = 1) -> tuple[list[tuple[float, NDArray[np.int16]]], DecodeStats]:
    """The luma of all frames with their times, and what the reader counted."""
    source = Source(str(path.parent), path.name)
    with source.opened(sequential=True) as file, Reader(source, file, file.read(4096), threads) as reader:
        frames = [
            (time, frame.to_ndarray(format="gray").astype(np.int16)) for frame, time in reader.all(reader.declared)
        ]
        return frames, reader.declared


def smeared(path: Path, whole: Path) -> int:
    """How many frames of a damaged video differ visibly from those of the sound one that are shown then."""
    theirs = {round(time * 25): luma for time, luma in counted(whole)[0]}
    return sum(visible(luma, theirs[round(time * 25)]) for time, luma in counted(path)[0])


def visible(ours: NDArray[np.int16], theirs: NDArray[np.int16]) -> bool:
    height, width = (edge // 16 * 16 for edge in ours.shape)
    squares = (ours - theirs)[:height, :width].astype(np.float32) ** 2
    return bool(squares.reshape(height // 16, 16, width // 16, 16).mean((1, 3)).max() > VISIBLE)


def overwritten(path: Path, source: Path, packet: int, length: int = 40, filler: bytes | None = None) -> Path:
    """A copy of which bytes in the middle of a packet are others: noise, or the filler again and again."""
    with av.open(str(source)) as container:
        packets = [each for each in container.demux(video=0) if each.size]
        position, size = packets[packet].pos, packets[packet].size
    data = bytearray(source.read_bytes())
    payload = bytes(packets[packet])
    start = data.index(payload, max(0, (position or 0) - 64)) + size // 3
    length = min(length, size - size // 3)
    noise = random.Random(0).randbytes(length)
    data[start : start + length] = noise if filler is None else filler * length
    path.write_bytes(data)
    return path


def without_packets(path: Path, source: Path, gaps: list[int], length: int) -> Path:
    """A copy of a transport stream in which `length` packets are missing from each of these places on."""
    data = source.read_bytes()
    gone = {number for gap in gaps for number in range(gap, gap + length)}
    kept = (data[at : at + 188] for at in range(0, len(data), 188) if at // 188 not in gone)
    path.write_bytes(b"".join(kept))
    return path


def clip(path: Path, **settings: object) -> Clip:
    encode = EncodeSettings.model_validate({"preset": "ultrafast", "short_edge": 64, **settings})
    return made(path, encode)


def made(path: Path, encode: EncodeSettings) -> Clip:
    clips = list(
        transcode(Source(str(path.parent), path.name), Video(path.name, (0,), "train"), VideoSettings(encode=encode))
    )
    assert len(clips) == 1 and isinstance(clips[0], Clip)
    return clips[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_sound_videos_show_none(sound: Callable[[str], Path], kind: str, threads: int) -> None:
    frames, decoded = counted(sound(kind), threads)
    assert (len(frames), decoded.concealed, decoded.errors) == (FRAMES, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOOTAGE.iterdir()), ids=lambda path: path.name)
def test_real_videos_show_none(path: Path) -> None:
    assert counted(path)[1].concealed == 0


@pytest.mark.parametrize(
    ("kind", "packet"),
    [
        ("b.mp4", 30), ("b.mp4", 48), ("slices.avi", 48), ("open.mkv", 29), ("mpeg4.avi", 30), ("mpeg4b.mp4", 27),
        ("mpeg2.mkv", 36), ("flash.flv", 30),
    ],
)  # fmt: skip
def test_overwritten_bytes(sound: Callable[[str], Path], tmp_path: Path, kind: str, packet: int) -> None:
    """From the damaged frame to the next key frame, and not one more."""
    hurt = overwritten(tmp_path / kind, sound(kind), packet)
    truly = smeared(hurt, sound(kind))
    frames, decoded = counted(hurt)
    assert truly > 0 and len(frames) >= FRAMES - 1
    assert truly <= decoded.concealed <= GOP + 3
    assert decoded.concealed == counted(hurt, threads=3)[1].concealed


@pytest.mark.parametrize("kind", ["b.ts", "refreshed.ts", "mpeg2.ts", "hevc.ts"])
def test_lost_packets_of_a_transport_stream(sound: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    whole = sound(kind)
    hurt = without_packets(tmp_path / kind, whole, [whole.stat().st_size // 188 // 2], 6)
    truly = smeared(hurt, whole)
    decoded = counted(hurt)[1]
    assert truly > 0 and truly <= decoded.concealed <= truly + GOP
    with pytest.raises(
        BadVideo, match=r"of \d+ frames show damage that the decoder concealed \(.* %\); at most 2 % may"
    ):
        clip(hurt)


@pytest.mark.parametrize("kind", ["hevc.mp4", "vp9.webm", "vp8.webm", "av1.mp4"])
def test_a_hole_of_zeros_where_no_decoder_tells(sound: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    hurt = overwritten(tmp_path / kind, sound(kind), GOP, length=600, filler=b"\0")
    truly = smeared(hurt, sound(kind))
    assert 0 < truly <= counted(hurt)[1].concealed <= GOP


@pytest.mark.parametrize("kind", ["hevc.mkv", "vp9.mkv"])
def test_a_wrong_checksum_where_no_decoder_tells(sound: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """All of the cluster, which is a group of pictures, is counted."""
    hurt = overwritten(tmp_path / kind, sound(kind), 30)
    truly = smeared(hurt, sound(kind))
    frames, decoded = counted(hurt)
    assert len(frames) == FRAMES and decoded.errors == 0
    assert 0 < truly <= decoded.concealed == GOP
    source = Source(str(tmp_path), kind)
    with source.opened(sequential=False) as file, Reader(source, file, file.read(4096)) as reader:
        for start, expected in ((48 / 25, 0), (24 / 25, GOP), (72 / 25, 0)):  # wherever reading begins
            stretch = reader.declared.for_segment(start, 24 / 25)
            list(reader.until(reader.seek(start, 0.0), start + 24 / 25, stretch))
            assert (stretch.frames, stretch.concealed) == (24, expected)


def test_wrong_checksums_of_every_cluster_are_the_muxers(sound: Callable[[str], Path], tmp_path: Path) -> None:
    data = bytearray(sound("hevc.mkv").read_bytes())
    at = data.find(b"\x1f\x43\xb6\x75")
    clusters = 0
    while at >= 0:
        crc = data.index(b"\xbf\x84", at)
        data[crc + 2] ^= 0xFF
        clusters += 1
        at = data.find(b"\x1f\x43\xb6\x75", crc)
    assert clusters > 3
    (tmp_path / "odd.mkv").write_bytes(data)
    assert counted(tmp_path / "odd.mkv")[1].concealed == 0


def test_what_a_hole_is() -> None:
    assert has_zero_run(b"\1" + bytes(256) + b"\1") and has_zero_run(bytes(256) + b"\1")
    assert not has_zero_run(b"\1" + bytes(255) + b"\1")
    assert not has_zero_run(b"\1" + bytes(4096))  # some pad
    assert not has_zero_run(b"")


def from_the_middle(path: Path, source: Path, first: int) -> Path:
    """The video without its first packets."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.video[0]
        target = out.add_stream_from_template(stream, opaque=True)
        for number, packet in enumerate(container.demux(stream)):
            if number >= first and packet.size:
                packet.stream = target
                out.mux_one(packet)
    return path


@pytest.mark.parametrize(
    ("kind", "cut", "shown"),
    [
        ("b.mp4", 30, 0), ("open.mkv", 30, 0), ("open.mkv", GOP, 0), ("mpeg2.mkv", 6, 0), ("mpeg4.avi", 30, 18),
        ("flash.flv", 30, 18),
    ],
)  # fmt: skip
def test_a_beginning_without_a_key_frame(
    sound: Callable[[str], Path], tmp_path: Path, kind: str, cut: int, shown: int
) -> None:
    """It is damage where the decoder shows it, on grey; most leave out what they cannot show."""
    path = from_the_middle(tmp_path / f"cut{Path(kind).suffix}", sound(kind), cut)
    frames, decoded = counted(path)
    assert decoded.concealed == shown
    assert 40 < len(frames) <= FRAMES - cut and (len(frames) == FRAMES - cut) >= bool(shown)


def test_a_damaged_b_frame_is_one_frame(sound: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing is predicted from those of MPEG-2."""
    whole = sound("mpeg2.mkv")
    with av.open(str(whole)) as container:
        stream = container.streams.video[0]
        types = {frame.pts: frame.pict_type for frame in container.decode(stream)}
    with av.open(str(whole)) as container:
        order = [types[packet.pts] for packet in container.demux(video=0) if packet.size]
    packet = next(number for number, kind in enumerate(order) if number > 30 and kind == av.video.frame.PictureType.B)
    hurt = overwritten(tmp_path / "b.mkv", whole, packet)
    assert smeared(hurt, whole) == counted(hurt)[1].concealed == 1


def test_few_are_counted_and_many_refused(sound: Callable[[str], Path], tmp_path: Path) -> None:
    hurt = overwritten(tmp_path / "hurt.mp4", sound("b.mp4"), 90, length=60)
    concealed = counted(hurt)[1].concealed
    assert 2 < concealed < 11
    with pytest.raises(BadVideo, match=f"{concealed} of 100 frames show damage") as caught:
        clip(hurt)
    assert caught.value.kind == "concealed"
    kept = clip(hurt, maximum_concealed=0.1)
    assert (kept.frames, kept.concealed) == (FRAMES, concealed)
    assert clip(sound("b.mp4"), maximum_concealed=0.0).concealed == 0


@pytest.mark.parametrize(("share", "refused"), [(0.019, True), (0.02, False), (1.0, False)])
def test_the_share(share: float, refused: bool) -> None:
    decoded = DecodeStats(declared_frames=100, declared_seconds=4.0, frame_interval=0.04)
    for number in range(100):
        decoded.count_frame(number * 0.04, int(number >= 98))
    assert (decoded.frames, decoded.concealed) == (100, 2)
    if refused:
        with pytest.raises(BadVideo, match=r"2 of 100 frames show .* \(2.0 %\); at most 1.9 % may"):
            judge_concealed(decoded, share)
    else:
        judge_concealed(decoded, share)


def test_a_segment_answers_for_itself(sound: Callable[[str], Path], tmp_path: Path) -> None:
    hurt = overwritten(tmp_path / "hurt.mp4", sound("b.mp4"), 30)
    settings = VideoSettings(
        encode=EncodeSettings(preset="ultrafast", short_edge=64),
        segments=SegmentSettings(seconds=24 / 25, spacing=24 / 25, exact=True),
    )
    clips = list(transcode(Source(str(tmp_path), hurt.name), Video(hurt.name, (0,), "train"), settings))
    assert [each.segment for each in clips] == [0, 1, 2, 3]
    failed = [each for each in clips if isinstance(each, SegmentFailure)]
    assert [(each.segment, each.kind) for each in failed] == [(1, "concealed")]
    assert all(each.concealed == 0 for each in clips if isinstance(each, Clip))


def test_copied_packets(sound: Callable[[str], Path], tmp_path: Path) -> None:
    """Not decoded: gaps in a transport stream are noticed, damaged packets left out, holes noticed, other bytes not."""
    whole = sound("b.ts")
    hurt = without_packets(tmp_path / "hurt.ts", whole, [whole.stat().st_size // 188 // 2], 3)
    assert made(whole, EncodeSettings(copy=True)).concealed == 0
    with pytest.raises(BadVideo) as caught:
        made(hurt, EncodeSettings(copy=True))
    assert caught.value.kind == "concealed"
    kept = made(hurt, EncodeSettings(copy=True, maximum_concealed=1.0))
    assert 0 < kept.concealed <= GOP + 1 and kept.frames < FRAMES
    unseen = overwritten(tmp_path / "hurt.mp4", sound("b.mp4"), 30)
    assert made(unseen, EncodeSettings(copy=True)).concealed == 0
    hole = overwritten(tmp_path / "hole.mp4", sound("b.mp4"), GOP, 600, b"\0")
    with pytest.raises(BadVideo, match="concealed"):
        made(hole, EncodeSettings(copy=True))


def test_a_store_says_what_is_concealed(sound: Callable[[str], Path], tmp_path: Path) -> None:
    """In its records, its index, what is shown of it, and in the failure list."""
    (tmp_path / "corpus/a").mkdir(parents=True)
    shutil.copyfile(sound("b.mp4"), tmp_path / "corpus/a/sound.mp4")
    few = overwritten(tmp_path / "corpus/a/few.mp4", sound("b.mp4"), 90, length=60)
    many = overwritten(tmp_path / "corpus/a/many.mp4", sound("b.mp4"), 48)
    encode = {"short_edge": 32, "preset": "ultrafast", "maximum_concealed": 0.1}
    store = open_store(str(tmp_path / "store"))
    shard(tmp_path / "corpus", store, ShardSettings.model_validate({"encode": encode}))
    rows = [row for one in record.list_records(store) for row in record.read_record(store, *one).to_pylist()]
    concealed = counted(few)[1].concealed
    assert {row["uri"]: row["concealed"] for row in rows} == {"a/sound.mp4": 0, "a/few.mp4": concealed}
    tree = summary(store)
    assert tree["concealed"] == {"frames": concealed, "samples": 1, "unknown": 0}
    assert tree["failures"] == {"concealed": 1} and tree["settings"]["encode"]["maximum_concealed"] == 0.1
    (line,) = tree["failure_examples"]
    assert line["uri"] == "a/many.mp4"
    assert line["reason"].startswith(
        f"{counted(many)[1].concealed} of 100 frames show damage that the decoder concealed"
    )
    assert verify(store, decode="all").damages == []
