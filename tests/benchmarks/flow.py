"""Benchmark: what storing optical flow costs and loses at each crf, on the tests' real videos.

python -m tests.benchmarks.flow [--quick] [--out FILE]

A row a crf: frames of flow a second (one core, Farneback included), bytes a frame, the mean error in pixels of eight
bits alone and of what decodes, and the highest ratio of the two on one video. The crf in use, marked, is the largest
with which no ratio reaches 2.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.media.encoder import KEY_FRAME_EVERY, EncodeSettings
from sharding.media.flow import FlowEncoder, FlowSettings
from tests.benchmarks.encoding import FOOTAGE, VIDEOS, luma, source_frames
from tests.benchmarks.support.tables import table, write_figures

CRFS = (4, 8, 10, 11, 12, 14, 16, 20)
FRAMES = 120  # of each video
COLUMNS = (
    ("crf", "crf", ">5"),
    ("frames/s", "frames_per_second", ">9.0f"),
    ("bytes/frame", "bytes_per_frame", ">12.0f"),
    ("8 bits, px", "quantisation_error", ">11.4f"),
    ("stored, px", "stored_error", ">11.4f"),
    ("highest ratio", "highest_ratio", ">14.2f"),
)


def measured(crf: int, sources: dict[str, list[NDArray[np.uint8]]]) -> dict[str, Any]:
    """A row of the table: means over the videos, and the highest ratio of one."""
    rows = []
    for frames in sources.values():
        encoder = FlowEncoder(FlowSettings(crf=crf), KEY_FRAME_EVERY)
        begin = time.perf_counter()
        for number, frame in enumerate(frames):
            encoder.add(frame, number * 3000)
        clip = encoder.finish()
        assert clip is not None
        rows.append(
            {
                "frames_per_second": clip.frames / (time.perf_counter() - begin),
                "bytes_per_frame": len(clip.data) / clip.frames,
                "clipped": clip.clipped,
                "quantisation_error": clip.quantisation_error,
                "stored_error": clip.stored_error,
                "ratio": clip.stored_error / clip.quantisation_error,
            }
        )
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    highest = max(row["ratio"] for row in rows)
    return {"crf": crf, **means, "highest_ratio": highest, "videos": dict(zip(sources, rows, strict=True))}


def main() -> None:
    """Measure every crf on every video, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few settings, on three videos")
    parser.add_argument("--out", type=Path, default=Path("bench/flow.json"))
    args = parser.parse_args()
    names, crfs = (VIDEOS[:3], (10, FlowSettings().crf, 12)) if args.quick else (VIDEOS, CRFS)
    sources = {
        name: [luma(frame) for frame in source_frames(FOOTAGE / name, EncodeSettings())[:FRAMES]] for name in names
    }
    rows = [measured(crf, sources) for crf in crfs]
    print(table([row | {"crf": "*" * (row["crf"] == FlowSettings().crf) + str(row["crf"])} for row in rows], COLUMNS))
    write_figures(args.out, rows)


if __name__ == "__main__":
    main()
