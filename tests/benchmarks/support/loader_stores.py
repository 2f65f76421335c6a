"""The stores that the loader's benchmark reads: the same video as our shards, and as webdataset's users have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cluster.jobs.sharding import run_sharding
from tests.benchmarks.sharding import FFMPEG, FOOTAGE, looped

SECONDS = 10
SIZE = "scale=w='if(lt(iw,ih),128,-2)':h='if(lt(iw,ih),-2,128)',format=yuv420p"


def segmented(folder: Path, videos: tuple[str, ...], segments: int, plain: bool = True) -> tuple[str, Path]:
    """Our store of so many segments of each video, and, if `plain`, a tar of the same with libx264's defaults.

    Videos that are shorter are repeated, each packet as it is.
    """
    store, tar, corpus = folder / "store", folder / "plain.tar", folder / "corpus" / "train"
    corpus.mkdir(parents=True)
    for name in videos:
        place = corpus / Path(name).stem
        place.mkdir(parents=True)
        long = looped(FOOTAGE / name, folder, SECONDS * segments)
        long.rename(place / long.name)
    cut = [f"segments.seconds={SECONDS}", f"segments.per_video={segments}"]
    run_sharding(str(corpus.parent), str(store), None, [*cut, "validation=0", "launcher=none", "workers=1"])
    if plain:
        _plain(tar, sorted(corpus.glob("*/*.mkv")), segments)
    return str(store), tar


def _plain(tar: Path, videos: list[Path], segments: int) -> None:
    """Segments of as many pixels, encoded as libx264 does unless told otherwise."""
    from webdataset import TarWriter

    out = tar.with_suffix(".mp4")
    with TarWriter(str(tar), encoder=False) as writer:
        for label, video in enumerate(videos):
            for number in range(segments):
                command = [
                    FFMPEG, "-v", "error", "-nostdin", "-y", "-ss", str(SECONDS * number), "-t", str(SECONDS),
                    "-i", str(video), "-vf", SIZE, "-an", "-c:v", "libx264", str(out),
                ]  # fmt: skip
                subprocess.run(command, check=True)
                name = f"{video.stem}-{number}"
                writer.write({"__key__": name, "mp4": out.read_bytes(), "cls": str(label).encode()})
    out.unlink()
