"""Benchmark: a Sports-1M list of 1,133,158 lines, joined with the files there are, ordered and cut into shard jobs.

python -m tests.benchmarks.planning [--lines N] [--quick] [--out FILE]

The list is made: random ids, 487 classes, two labels on 5 % of the lines, no file for 7 %. The files are a listing of
as many names, as a bucket would give them. A table: seconds of each part on one core, and the most memory that
the child process which did it ever held. The whole must stay under 60 s and 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sharding.corpora.entries.roots import files_below
from sharding.corpora.manifest import CorpusSettings, read_manifest
from sharding.format.plan import plan

LINES = 1_133_158
CLASSES = 487
MEDIA = "s3://bucket/videos"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
LIMIT_SECONDS, LIMIT_BYTES = 60, 10**9


def video_id(number: int) -> str:
    """The id of the list's line `number`: eleven letters, in no order."""
    mixed = (number * 0x9E3779B97F4A7C15 + 0x1234567) % 2**64
    return "".join(LETTERS[mixed >> shift & 63] for shift in range(0, 64, 6))


def has_file(number: int) -> bool:
    """False for 7 % of the lines."""
    return number * 7919 % 100 >= 7


def write_lists(folder: Path, lines: int) -> None:
    """train_partition.txt and test_partition.txt, about one line in five being of the test, and labels.txt."""
    draw = random.Random(0)
    with (folder / "train_partition.txt").open("w") as train, (folder / "test_partition.txt").open("w") as test:
        for number in range(lines):
            labels = draw.sample(range(CLASSES), 2 if draw.random() < 0.05 else 1)
            text = f"https://www.youtube.com/watch?v={video_id(number)} {','.join(map(str, labels))}\n"
            (test if number % 5 == 0 else train).write(text)
    (folder / "labels.txt").write_text("".join(f"sport {number}\n" for number in range(CLASSES)))


def listing(lines: int) -> Callable[[str], Iterator[tuple[str, int | None]]]:
    """What lists a root's files: the media's from their ids, the lists' folder as it is."""

    def files(root: str) -> Iterator[tuple[str, int | None]]:
        if root != MEDIA:
            yield from files_below(root)
            return
        for number in range(lines):
            if has_file(number):
                name = video_id(number)
                yield f"{name[:2]}/{name}.mp4", 20_000_000 + number

    return files


def measure(folder: Path, lines: int) -> dict[str, Any]:
    """Plan the list, in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in listing(lines)(MEDIA):
        pass
    names = time.perf_counter() - clock
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    clock, cpu = time.perf_counter(), time.process_time()
    settings = CorpusSettings(media=MEDIA)
    with read_manifest(str(folder), settings, files=listing(lines)) as manifest:
        read, read_cpu = time.perf_counter(), time.process_time()
        jobs = videos = 0
        for job in plan(manifest.videos(), manifest.counts, None):
            jobs += 1
            videos += len(job.videos)
        planned, planned_cpu = time.perf_counter(), time.process_time()
        refused = sum(1 for _ in manifest.refusals())
        assert videos == sum(manifest.counts.values()) == sum(map(has_file, range(lines)))
        assert refused == lines - videos == manifest.left_out.get("missing", 0)
    return {
        "lines": lines,
        "videos": videos,
        "jobs": jobs,
        "missing": refused,
        "read, joined, ordered": (read - clock, read_cpu - cpu),
        "  of which making the listing's names up": (names, names),
        "every job made": (planned - read, planned_cpu - read_cpu),
        "whole": (planned - clock, planned_cpu - cpu),
        "bytes before": before,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def run(lines: int) -> dict[str, Any]:
    """Make a list of so many lines and plan it in a child process."""
    with tempfile.TemporaryDirectory(prefix="reelscale-planning-") as folder:
        write_lists(Path(folder), lines)
        command = [sys.executable, "-m", "tests.benchmarks.planning", "--lines", str(lines), "--child", folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    counts = f"{result['lines']:,} lines · {result['videos']:,} videos · {result['jobs']:,} jobs"
    lines = [f"{counts} · {result['missing']:,} missing", f"{'':<44}{'seconds':>9}{'of CPU':>9}"]
    lines += [f"{name:<44}{v[0]:>9.1f}{v[1]:>9.1f}" for name, v in result.items() if isinstance(v, list | tuple)]
    lines.append(f"most memory held: {result['bytes'] / 1e6:.0f} MB ({result['bytes before'] / 1e6:.0f} MB before)")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--quick", action="store_true", help="a list of 50,000 lines")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(arguments.child, arguments.lines)))
        return
    result = run(50_000 if arguments.quick else arguments.lines)
    print(table(result))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    met = result["whole"][0] < LIMIT_SECONDS and result["bytes"] < LIMIT_BYTES
    print(f"under {LIMIT_SECONDS} s and {LIMIT_BYTES / 1e9:.0f} GB: {'yes' if met else 'NO'}")


if __name__ == "__main__":
    main()
