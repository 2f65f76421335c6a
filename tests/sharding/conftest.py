"""Small real videos, and broken ones made from them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.s3 import s3_server

FOOTAGE = Path(__file__).parents[1] / "data" / "footage"


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[dict[str, str], str]]:
    with s3_server() as server:
        yield server


def cut(source: Path, target: Path, first: int, frames: int, faststart: bool = False) -> Path:
    """`frames` frames of real footage as an mp4 of its own."""
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(source)) as container, av.open(str(target), "w", options=options) as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "12"})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number >= first + frames:
                break
            if number < first:
                continue
            if number == first:
                stream.width, stream.height = frame.width, frame.height
            fresh = frame.reformat(format="yuv420p")
            fresh.pts, fresh.time_base = number - first, Fraction(1, 25)
            fresh.pict_type = av.video.frame.PictureType.NONE
            out.mux(stream.encode(fresh))
        out.mux(stream.encode(None))
    return target


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six pieces of 20 frames of a man in a car."""
    folder = tmp_path_factory.mktemp("pieces")
    return [cut(FOOTAGE / "carphone.mp4", folder / f"piece{n}.mp4", 20 * n, 20) for n in range(6)]


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are no usable video, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("broken")
    paths = {name: folder / f"{name}.mp4" for name in ("empty", "text", "zeros", "noise", "audio", "still")}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("This is a note that somebody named .mp4.\n" * 50)
    paths["zeros"].write_bytes(bytes(5000))
    paths["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    _write_audio(paths["audio"])
    cut(FOOTAGE / "carphone.mp4", paths["still"], 0, 1)
    for name, faststart in (("cut_before_header", False), ("cut_after_header", True)):
        whole = cut(FOOTAGE / "carphone.mp4", folder / "whole.mp4", 0, 100, faststart).read_bytes()
        paths[name] = folder / f"{name}.mp4"
        paths[name].write_bytes(whole[: len(whole) * 4 // 10])
    (folder / "whole.mp4").unlink()
    return paths


@pytest.fixture()
def corpus(tmp_path: Path, pieces: list[Path], broken: dict[str, Path]) -> Path:
    """Two classes of three good videos, two broken ones, and a file that is no video by its name."""
    root = tmp_path / "corpus"
    for number, piece in enumerate(pieces):
        folder = root / ("calm" if number < 3 else "lively")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece, folder / piece.name)
    shutil.copyfile(broken["empty"], root / "calm" / "empty.mp4")
    shutil.copyfile(broken["text"], root / "lively" / "note.mp4")
    (root / "readme.txt").write_text("about this corpus")
    return root


def frames_of(data: bytes) -> list[np.ndarray]:
    """Every frame of an mp4, decoded the ordinary way, as its luma and chroma planes one under the other."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]


def _write_audio(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        tone = np.sin(np.arange(44100, dtype=np.float32) / 16)[None]
        for start in range(0, 44032, 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
