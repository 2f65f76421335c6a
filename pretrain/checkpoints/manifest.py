"""A checkpoint's manifest: its files with their sha256, written last; and which checkpoints are kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sharding.base.atomic import sha256_of
from sharding.base.errors import UserError

FORMAT = 2
MANIFEST = "manifest.json"
_NAME = re.compile(r"[a-z][a-z0-9_-]*\.(safetensors|json|jsonl)")


@dataclass(frozen=True)
class FileSum:
    """A file's length and digest."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Which start of the run saved which step, with clip@1 where it was validated just then. files: by name."""

    step: int
    attempt: int
    clip1: float | None
    files: dict[str, FileSum]

    def encoded(self) -> bytes:
        """Its JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def step_name(step: int) -> str:
    """What a step's folder is called."""
    return f"step-{step:08d}"


def manifest_of(folder: Path, step: int, attempt: int, clip1: object) -> Manifest:
    """The manifest of the files in a folder, which are read once for it."""
    known = isinstance(clip1, int | float) and math.isfinite(clip1)
    files = {path.name: FileSum(path.stat().st_size, sha256_of(path)) for path in sorted(folder.iterdir())}
    return Manifest(step, attempt, float(clip1) if known else None, files)  # type: ignore[arg-type]


def read_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in a file's content.

    Raises ValueError for a damaged one; UserError for another version's: to skip it would begin the run anew.
    """
    try:
        tree = json.loads(data)
        written = int(tree["format"])
        if written == FORMAT:
            files = {str(name): FileSum(int(of["bytes"]), str(of["sha256"])) for name, of in tree["files"].items()}
            clip1 = None if tree["clip1"] is None else float(tree["clip1"])
            found = Manifest(int(tree["step"]), int(tree["attempt"]), clip1, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its manifest is damaged: {type(error).__name__}: {error}") from error
    if written != FORMAT:
        what = f"a checkpoint of format {written}; this version reads format {FORMAT}"
        raise UserError(what, where, "go on with the version that wrote it, or name a new folder: run=runs/NAME")
    strange = [name for name in files if not _NAME.fullmatch(name)]
    if strange:
        raise ValueError(f"its manifest names the file {strange[0]!r}")
    return found


def kept(found: Iterable[Manifest], saved: Manifest, keep: int) -> list[Manifest]:
    """Of sound checkpoints those to keep once `saved` is: the newest `keep` up to it, and the best by clip@1.

    What is beyond it is not kept: the run had begun there again, or it could not be read. Of a step saved twice
    the newer attempt's counts; of equally good ones the last.
    """
    steps = {each.step: each for each in sorted(found, key=lambda each: each.attempt) if each.step <= saved.step}
    known = [steps[step] for step in sorted(steps)]
    judged = [each for each in known if each.clip1 is not None]
    best = max(judged, key=lambda each: (each.clip1, each.step), default=None)
    newest = known[-keep:]
    return newest if best is None or best in newest else [best, *newest]
