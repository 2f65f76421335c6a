"""Checks one sample against its row of the record: the row itself, its JSON, its mp4 (sha256, packets, decoding)."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import av
import av.error
import numpy as np

from sharding.format.record import PACKETS
from sharding.media.h264 import packet_table

_IN_JSON = ("labels", "uri", "segment", "start", "end", "fps", "frames", "width", "height")


def row_faults(row: dict[str, Any], classes: int | None) -> Iterator[str]:
    """What in a record's row contradicts itself or the class list."""
    if not re.fullmatch(r"[0-9a-f]{20}", row["key"]):
        yield "its key is not 20 hex digits"
    wrong = [label for label in row["labels"] if classes is not None and not 0 <= label < classes]
    if wrong:
        yield f"labels outside the class list: {wrong}"
    for kind, part in (("", row), ("flow ", row["flow"])):
        if part is not None and any(len(part[name]) != part["frames"] for name, _ in PACKETS[1:5]):
            yield f"its {kind}packet table has not one packet a frame"


def json_faults(data: bytes, row: dict[str, Any]) -> Iterator[str]:
    """What in a sample's JSON differs from its row."""
    try:
        tree = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        yield "is not JSON, or cut off"
        return
    wrong = [name for name in sorted({*_IN_JSON, *(row.keys() & tree.keys())}) if tree.get(name) != row[name]]
    if wrong:
        yield f"is not what the record says: {', '.join(wrong)}"


def video_faults(data: bytes, record: dict[str, Any], decode: bool) -> Iterator[str]:
    """What in an mp4 differs from its row, or from the row's "flow"; `decode`: decode all of its frames, too."""
    if len(data) < record["size"]:
        yield f"is cut off: {len(data)} of {record['size']} bytes are there"
        return
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        yield "is not what was written (sha256)"
        return
    try:
        table = packet_table(data)
    except (av.error.FFmpegError, AssertionError, LookupError, ValueError) as error:
        yield f"gives no packets: {error or type(error).__name__}"
        return
    wrong = [name for name, _ in PACKETS if not _same(table[name], record[name])]
    if wrong:
        yield f"has another packet table than the record: {', '.join(wrong)}"
    if decode:
        yield from _decode_faults(data, record)


def _same(ours: Any, recorded: Any) -> bool:
    if isinstance(ours, bytes):
        return bool(ours == recorded)
    return bool(np.array_equal(ours, np.array(recorded)))


def _decode_faults(data: bytes, record: dict[str, Any]) -> Iterator[str]:
    frames, sizes = 0, set()
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            for picture in container.decode(video=0):
                frames += 1
                sizes.add((picture.width, picture.height))
    except av.error.FFmpegError as error:
        yield f"does not decode: {error.strerror or error}"
        return
    if frames != record["frames"]:
        yield f"gives {frames} frames; {record['frames']} are recorded"
    if sizes != {(record["width"], record["height"])}:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        yield f"gives pictures of {shown}; {record['width']}x{record['height']} are recorded"
