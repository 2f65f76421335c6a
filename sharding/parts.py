"""A shard's tar parts on the local disk: written sample by sample, closed at a length, read back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharding import record
from sharding.errors import UserError
from sharding.manifest import Video, printable
from sharding.plan import ShardJob
from sharding.video import TIME_BASE, Clip


def sample_key(uri: str) -> str:
    """The name of a video's sample: 20 hex digits, the same in every store."""
    return hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()[:20]


class Parts:
    """The tar parts of a shard in a local folder, byte for byte the same for the same videos.

    Raises UserError if the disk is full.
    """

    def __init__(self, folder: Path, job: ShardJob, part_bytes: int) -> None:
        self.folder = folder
        self.job = job
        self.part_bytes = part_bytes
        self.paths: list[Path] = []
        self.rows: list[dict[str, Any]] = []
        self.writer: Any = None

    def add(self, video: Video, clip: Clip) -> None:
        """Append a sample."""
        row = _row(video, clip, part=len(self.paths) - (self.writer is not None))
        with self._told():
            if self.writer is None:
                self._open()
            self.writer.write({"__key__": row["key"], "mp4": clip.data, "json": _sample_json(video, clip)})
        self.rows.append(row)
        if self.writer.tarstream.offset >= self.part_bytes:
            self.close()

    def close(self) -> None:
        """End the part being written, if any."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with self._told():
                writer.close()

    def verified(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The record's rows with their offsets, and a description a part, both read back from the tars."""
        described = []
        rows = iter(self.rows)
        for number, path in enumerate(self.paths):
            samples = 0
            with tarfile.open(path) as tar, path.open("rb") as file:
                for member in tar:
                    if not member.name.endswith(".mp4"):
                        continue
                    row = next(rows)
                    file.seek(member.offset_data)
                    payload = hashlib.sha256(file.read(member.size)).hexdigest()
                    if member.name != f"{row['key']}.mp4" or row["part"] != number or payload != row["sha256"]:
                        remedy = "the local disk returned other bytes than were written: check it, or set TMPDIR"
                        raise UserError(f"sample {row['key']} did not read back as written", str(path), remedy)
                    row |= {"offset": member.offset_data, "size": member.size}
                    samples += 1
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            name = record.part_path(self.job.split, self.job.id, number)
            described.append({"path": name, "samples": samples, "bytes": path.stat().st_size, "sha256": sha256})
        assert next(rows, None) is None
        return self.rows, described

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(UserError):  # a part still open is abandoned
            self.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "free space there, or set TMPDIR to another folder"
            raise UserError(f"the shard cannot be written: {error.strerror}", str(self.folder), remedy) from error

    def _open(self) -> None:
        from webdataset import TarWriter  # imports torch: seconds that a planner need not spend

        path = self.folder / f"{len(self.paths):02d}.tar"
        self.paths.append(path)
        self.writer = TarWriter(str(path), encoder=False, mtime=0, user="reelscale", group="reelscale", mode=0o444)


def _row(video: Video, clip: Clip, part: int) -> dict[str, Any]:
    fields = {name: value for name, value in vars(clip).items() if name != "data"}
    return fields | {
        "key": sample_key(video.uri),
        "part": max(part, 0),
        "sha256": hashlib.sha256(clip.data).hexdigest(),
        "labels": list(video.labels),
        "uri": printable(video.uri),
        "time_base": str(TIME_BASE),
    }


def _sample_json(video: Video, clip: Clip) -> bytes:
    tree = {
        "labels": list(video.labels),
        "uri": printable(video.uri),
        "start": clip.start,
        "end": clip.end,
        "fps": clip.fps,
        "frames": clip.frames,
        "width": clip.width,
        "height": clip.height,
    }
    return json.dumps(tree, sort_keys=True).encode()
