"""Benchmark: whole shard jobs beside the ffmpeg program doing the same transcode, and segments beside whole videos.

python -m tests.benchmarks.sharding [--quick] [--processes N] [--rounds N] [--out FILE]

Every way runs the same real videos, looped to a fair length, with the same encoder settings in as many processes of
one thread each; the ways take turns, and of each the median round counts. `ours` makes shards, from the file to the
record in the store. `ffmpeg` is the program inside imageio-ffmpeg's wheel, writing mp4 files. `plain` decodes to RGB
arrays, resizes and encodes frame by frame with PyAV, as a script of an afternoon does: a floor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg

from sharding.corpora.manifest import Video
from sharding.format.plan import ShardJob, job_id
from sharding.make.shard import ShardSettings, WorkerSettings, make_shard
from sharding.media.h264 import x264_options

FOOTAGE = Path(__file__).parents[1] / "data" / "footage"
VIDEOS = (
    "balance_cam01.mp4", "bigbuckbunny.mp4", "bikes.mp4", "carphone.mp4",
    "cup.mp4", "lego.mov", "lego.webm", "slackline.mp4", "tree.avi",
)  # fmt: skip
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
LONG_SECONDS, EVERY_SECONDS = 300, 2
SEGMENTS = {"seconds": 10.0, "per_video": 3}
WHOLE_GOAL, SEGMENT_GOAL = 0.95, 8.0


@dataclass(frozen=True)
class Task:
    """A video, its frames, and how often a process transcodes it in one round."""

    path: Path
    frames: int
    repeats: int


def ours(task: Task, folder: Path, settings: ShardSettings | None = None) -> None:
    """Shards of the task's video, in a store of this process."""
    videos = tuple(Video(str(task.path), (0,), "train", start=None, end=None) for _ in range(task.repeats))
    for number, video in enumerate(videos):
        job = ShardJob(job_id(0, number), "train", (video,))
        store = folder / "store"
        made = make_shard(job, "/", str(store), settings or ShardSettings(), WorkerSettings())
        assert not made.failures and made.samples, made
        shutil.rmtree(store)


def ffmpeg(task: Task, folder: Path) -> None:
    """The ffmpeg program with our encoder's settings."""
    encode = ShardSettings().encode
    edge, every = encode.short_edge, encode.key_frame_every
    x264 = x264_options(every, encode.preset, encode.crf)["x264-params"]
    command = [
        FFMPEG, "-v", "error", "-nostdin", "-y", "-threads", "1", "-filter_threads", "1", "-i", str(task.path),
        "-map", "0:v:0", "-an", "-sn", "-dn", "-fps_mode", "passthrough",
        "-vf", f"scale=w='if(lt(iw,ih),{edge},-2)':h='if(lt(iw,ih),-2,{edge})',format=yuv420p",
        "-c:v", "libx264", "-preset", encode.preset, "-tune", "fastdecode", "-crf", str(encode.crf), "-bf", "0",
        "-g", str(every), "-x264-params", x264, "-threads:v", "1", str(folder / "out.mp4"),
    ]  # fmt: skip
    for _ in range(task.repeats):
        subprocess.run(command, check=True)


def plain(task: Task, folder: Path) -> None:
    """RGB arrays, frame by frame."""
    encode = ShardSettings().encode
    for _ in range(task.repeats):
        with av.open(str(task.path)) as source, av.open(str(folder / "out.mp4"), "w") as sink:
            into = sink.add_stream("libx264", rate=30, options={"preset": encode.preset, "crf": str(encode.crf)})
            into.pix_fmt, into.codec_context.thread_count = "yuv420p", 1
            for number, frame in enumerate(source.decode(video=0)):
                scale = encode.short_edge / min(frame.width, frame.height)
                width, height = 2 * round(frame.width * scale / 2), 2 * round(frame.height * scale / 2)
                pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
                if not number:
                    into.width, into.height = width, height
                small = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                small.pts, small.time_base = number, Fraction(1, 30)
                sink.mux(into.encode(small))
            sink.mux(into.encode(None))


class Crew:
    """Processes that live as long as the benchmark, as workers do, and begin every round together."""

    def __init__(self, processes: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.barrier = context.Barrier(processes + 1)
        self.pipes, self.processes = [], []
        for number in range(processes):
            here, far_end = context.Pipe()
            own_folder = folder / f"process{number}"
            own_folder.mkdir()
            process = context.Process(target=_serve, args=(far_end, self.barrier, own_folder), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def seconds(self, function: Callable[..., None], task: Task, *arguments: Any) -> float:
        """How long all of them take for the same."""
        for pipe in self.pipes:
            pipe.send((function, task, arguments))
        self.barrier.wait()
        began = time.perf_counter()
        for pipe in self.pipes:
            told = pipe.recv()
            assert told is None, told
        return time.perf_counter() - began

    def end(self) -> None:
        """Let them go."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def _serve(pipe: Any, barrier: Barrier, folder: Path) -> None:
    while (given := pipe.recv()) is not None:
        function, task, arguments = given
        barrier.wait()
        try:
            function(task, folder, *arguments)
            pipe.send(None)
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def looped(path: Path, folder: Path, seconds: float, *encode: str) -> Path:
    """The video again and again for so long, its packets as they are (or encoded once, as told)."""
    once = folder / f"once-{path.stem}.mkv"
    codec = encode or ("-c:v", "copy")
    subprocess.run([FFMPEG, "-v", "error", "-y", "-i", str(path), "-map", "0:v:0", *codec, str(once)], check=True)
    long = folder / f"long-{path.stem}.{'mp4' if encode else 'mkv'}"
    subprocess.run(
        [
            FFMPEG,
            "-v",
            "error",
            "-y",
            "-stream_loop",
            "-1",
            "-i",
            str(once),
            "-t",
            str(seconds),
            "-c",
            "copy",
            str(long),
        ],
        check=True,
    )
    return long


def frames_in(path: Path) -> int:
    """How many frames decode."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in container.decode(video=0))


def whole_videos(crew: Crew, folder: Path, rounds: int, names: tuple[str, ...], processes: int) -> list[dict[str, Any]]:
    """Frames a second of each way, a row a video."""
    rows = []
    ways = {"ours": ours, "ffmpeg": ffmpeg, "plain": plain}
    for name in names:
        path = looped(FOOTAGE / name, folder, 20.0)
        task = Task(path, frames_in(path), 1)
        once = crew.seconds(ours, task)  # warms up, too
        task = Task(path, task.frames, max(1, round(3.0 / once)))
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, function in ways.items():
                taken[way].append(crew.seconds(function, task))
        total = processes * task.repeats * task.frames
        row = {way: total / statistics.median(seconds) for way, seconds in taken.items()}
        ratios = [theirs / mine for mine, theirs in zip(taken["ours"], taken["ffmpeg"], strict=True)]
        rows.append({"video": name, "frames": task.frames, **row, "ratio": statistics.median(ratios)})
        print(
            f"{name:<20} {task.frames:>6} {row['ours']:>10,.0f} {row['ffmpeg']:>10,.0f} {row['plain']:>10,.0f}"
            f" {rows[-1]['ratio']:>8.2f}  ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
            flush=True,
        )
    return rows


def segments(crew: Crew, folder: Path, rounds: int) -> dict[str, float]:
    """Videos a second with three segments of ten seconds, beside the whole, of slackline looped to five minutes."""
    every = round(30 * EVERY_SECONDS)
    path = looped(
        FOOTAGE / "slackline.mp4", folder, LONG_SECONDS,
        "-c:v", "libx264", "-preset", "veryfast", "-g", str(every), "-keyint_min", str(every), "-sc_threshold", "0",
    )  # fmt: skip
    cut = ShardSettings.model_validate({"segments": SEGMENTS})
    task = Task(path, 0, 1)
    few: list[float] = []
    whole: list[float] = []
    crew.seconds(ours, task, cut)
    for _ in range(rounds):
        few.append(crew.seconds(ours, task, cut))
        whole.append(crew.seconds(ours, task))
        few.append(crew.seconds(ours, task, cut))
    speedup = statistics.median(whole) / statistics.median(few)
    return {"whole_seconds": statistics.median(whole), "segments_seconds": statistics.median(few), "speedup": speedup}


def main() -> None:
    """Print both tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two videos, one round, no segments")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    version = subprocess.run([FFMPEG, "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    ours_is = f"PyAV {av.__version__} with libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
    print(f"{args.processes} processes of 1 thread · {ours_is} · {version}\n")
    results: dict[str, Any] = {"processes": args.processes, "ours": ours_is, "ffmpeg": version}
    with tempfile.TemporaryDirectory(prefix="bench-sharding-") as name:
        folder = Path(name)
        crew = Crew(args.processes, folder)
        print(f"{'frames a second':<20} {'frames':>6} {'ours':>10} {'ffmpeg':>10} {'plain':>10} {'ratio':>8}")
        names = ("bikes.mp4", "carphone.mp4") if args.quick else VIDEOS
        results["whole"] = whole_videos(crew, folder, 1 if args.quick else args.rounds, names, args.processes)
        ratios = [row["ratio"] for row in results["whole"]]
        mean = statistics.geometric_mean(ratios)
        print(f"ours / ffmpeg: {mean:.2f} in the mean, {min(ratios):.2f} at least (goal {WHOLE_GOAL})\n")
        results |= {"mean_ratio": mean, "least_ratio": min(ratios)}
        if not args.quick:
            results["segments"] = segments(crew, folder, max(1, args.rounds // 2))
            cut = results["segments"]
            print(
                f"a video of {LONG_SECONDS} s, 1768x994: whole {cut['whole_seconds']:.1f} s, three segments of 10 s "
                f"{cut['segments_seconds']:.2f} s: {cut['speedup']:.1f} times the rate (goal {SEGMENT_GOAL:g})"
            )
        crew.end()
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
