"""Writes a shard's tar parts on the local disk, sample by sample, and verifies them by reading them back."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sharding.base.atomic import sha256_of
from sharding.base.errors import UserError
from sharding.corpora.manifest import Video, printable
from sharding.format import record
from sharding.format.plan import ShardJob
from sharding.media.clip import Clip
from sharding.media.flow import FlowClip
from sharding.media.h264 import TIME_BASE


def sample_key(video: Video, segment: int, cut: bool) -> str:
    """The key of a sample: 20 hex digits, the same in every store.

    Computed from the uri alone for a whole video; from the listed stretch and the segment's number, too, where the
    video has a stretch, or where videos are `cut` into segments.
    """
    place = f"\0{video.start}\0{video.end}\0{segment}" if cut or (video.start, video.end) != (None, None) else ""
    return hashlib.sha256((video.uri + place).encode("utf-8", "surrogateescape")).hexdigest()[:20]


class TarPartWriter:
    """Writes the tar parts of a shard into a local folder, byte for byte the same for the same videos.

    A part is closed once it has `part_bytes` or `part_samples`. Its methods raise UserError if the disk is full.
    """

    def __init__(self, folder: Path, job: ShardJob, part_bytes: int, part_samples: int | None, cut: bool) -> None:
        self.folder = folder
        self.job = job
        self.part_bytes = part_bytes
        self.part_samples = part_samples
        self.cut = cut
        self.paths: list[Path] = []
        self.rows: list[dict[str, Any]] = []
        self.writer: Any = None
        self.samples = 0  # of the part being written

    def add_sample(self, video: Video, clip: Clip) -> None:
        """Append a sample to the open part, or to a new one."""
        key = sample_key(video, clip.segment, self.cut)
        row = _row(video, clip, key, part=len(self.paths) - (self.writer is not None))
        members = {"__key__": key, "mp4": clip.data, "json": _sample_json(video, clip)}
        if clip.flow is not None:
            members["flow.mp4"] = clip.flow.data
        with self._disk_errors_as_user_error():
            if self.writer is None:
                self._open()
            self.writer.write(members)
        self.rows.append(row)
        self.samples += 1
        # `tarstream` is webdataset 1's TarFile; its `offset`, which Python does not document, counts the bytes written.
        if self.writer.tarstream.offset >= self.part_bytes or self.samples == self.part_samples:
            self.close_part()

    def close_part(self) -> None:
        """Close the part being written, if any."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with self._disk_errors_as_user_error():
                writer.close()

    def read_back(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(the record's rows with their offsets, its metadata of each part), both read back from the tars.

        Raises UserError if a tar does not hold the bytes that were written.
        """
        described = []
        rows = iter(self.rows)
        for number, path in enumerate(self.paths):
            histogram: Counter[int] = Counter()
            with tarfile.open(path) as tar, path.open("rb") as file:
                members = {member.name: (member.offset_data, member.size) for member in tar}
                kept = sum(name.endswith(".json") for name in members)
                for row in islice(rows, kept):
                    row |= self._place(file, members, f"{row['key']}.mp4", row, number)
                    if row["flow"]:
                        row["flow"] |= self._place(file, members, f"{row['key']}.flow.mp4", row["flow"], number)
                    histogram.update(row["labels"])
            sha256 = sha256_of(path)
            described.append(
                {
                    "path": record.part_path(self.job.split, self.job.id, number, sha256),
                    "samples": kept,
                    "bytes": path.stat().st_size,
                    "sha256": sha256,
                    "label_histogram": {str(label): count for label, count in sorted(histogram.items())},
                }
            )
        assert next(rows, None) is None
        return self.rows, described

    def _place(
        self, file: Any, members: dict[str, tuple[int, int]], name: str, row: dict[str, Any], part: int
    ) -> dict[str, int]:
        """The offset and size of a member, whose bytes must be those that were written."""
        offset, size = members.get(name, (0, 0))
        file.seek(offset)
        if hashlib.sha256(file.read(size)).hexdigest() != row["sha256"] or row.get("part", part) != part:
            remedy = "the local disk returned other bytes than were written: check it, or set TMPDIR"
            raise UserError(f"{name} did not read back as written", str(self.folder), remedy)
        return {"offset": offset, "size": size}

    def __enter__(self) -> TarPartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(UserError):  # a part still open is abandoned
            self.close_part()

    @contextlib.contextmanager
    def _disk_errors_as_user_error(self) -> Iterator[None]:
        """Raise UserError for an error of the disk, inside the `with`."""
        try:
            yield
        except OSError as error:
            remedy = "free space there, or set TMPDIR to another folder"
            raise UserError(f"the shard cannot be written: {error.strerror}", str(self.folder), remedy) from error

    def _open(self) -> None:
        path = self.folder / f"{len(self.paths):02d}.tar"
        self.paths.append(path)
        self.samples = 0
        self.writer = _tar_writer()(str(path), encoder=False, mtime=0, user="reelscale", group="reelscale", mode=0o444)


def _tar_writer() -> Any:
    """webdataset's TarWriter: as the process has it, else imported without torch."""
    webdataset = sys.modules.get("webdataset")
    return webdataset.TarWriter if webdataset else _tar_writer_without_torch()


@functools.cache
def _tar_writer_without_torch() -> Any:
    """webdataset's TarWriter without torch, which is two seconds and 200 MB of each process that shards.

    webdataset (1.0) has stand-ins for what it takes of torch, none of which a writer of tars uses. Whoever imports
    webdataset after that gets all of it.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from webdataset import TarWriter
    finally:
        if absent:
            sys.modules.pop("torch", None)
            for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
                del sys.modules[name]
    return TarWriter


def _row(video: Video, clip: Clip, key: str, part: int) -> dict[str, Any]:
    fields = {name: value for name, value in vars(clip).items() if name in record.RECORD.names}
    return fields | {
        "key": key,
        "part": max(part, 0),
        "sha256": hashlib.sha256(clip.data).hexdigest(),
        "labels": list(video.labels),
        "uri": printable(video.uri),
        "time_base": str(TIME_BASE),
        "flow": _flow_row(clip.flow),
    }


def _flow_row(flow: FlowClip | None) -> dict[str, Any] | None:
    if flow is None:
        return None
    fields = {name: value for name, value in vars(flow).items() if name != "data"}
    return fields | {"sha256": hashlib.sha256(flow.data).hexdigest()}


def _sample_json(video: Video, clip: Clip) -> bytes:
    tree = {
        "labels": list(video.labels),
        "uri": printable(video.uri),
        "segment": clip.segment,
        "start": clip.start,
        "end": clip.end,
        "fps": clip.fps,
        "frames": clip.frames,
        "width": clip.width,
        "height": clip.height,
    }
    return json.dumps(tree, sort_keys=True).encode()
