"""A checkpoint's manifest: its files with their sha256, written last."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from sharding.base.atomic import sha256_of
from sharding.base.errors import UserError

FORMAT = 2
MANIFEST = "manifest.json"
_NAME = re.compile(r"[a-z][a-z0-9_-]*\.(safetensors|json|jsonl)")


class CheckpointId(NamedTuple):
    """Which start of a run saved a checkpoint, and at which step; of two, the greater is the newer."""

    attempt: int
    step: int


@dataclass(frozen=True)
class FileSum:
    """A file's length and digest."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint consists of: its step, the start that saved it, clip@1 if it was validated, files by name."""

    step: int
    attempt: int
    clip1: float | None
    files: dict[str, FileSum]

    @property
    def id(self) -> CheckpointId:
        """The checkpoint that this is the manifest of."""
        return CheckpointId(self.attempt, self.step)

    def encoded(self) -> bytes:
        """The manifest's JSON, as it is written."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:08d}"


def checkpoint_manifest_of(folder: Path, step: int, attempt: int, clip1: object) -> CheckpointManifest:
    """The manifest of the files in a folder, which are read once for it."""
    validated = isinstance(clip1, int | float) and math.isfinite(clip1)
    files = {path.name: FileSum(path.stat().st_size, sha256_of(path)) for path in sorted(folder.iterdir())}
    return CheckpointManifest(step, attempt, float(clip1) if validated else None, files)  # type: ignore[arg-type]


def read_checkpoint_manifest(data: bytes, where: str) -> CheckpointManifest:
    """The manifest in a file's content.

    Raises ValueError for a damaged one; UserError for another version's: to skip it would begin the run anew.
    """
    try:
        tree = json.loads(data)
        written = int(tree["format"])
        if written == FORMAT:
            files = {str(name): FileSum(int(of["bytes"]), str(of["sha256"])) for name, of in tree["files"].items()}
            clip1 = None if tree["clip1"] is None else float(tree["clip1"])
            manifest = CheckpointManifest(int(tree["step"]), int(tree["attempt"]), clip1, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its manifest is damaged: {type(error).__name__}: {error}") from error
    if written != FORMAT:
        what = f"a checkpoint of format {written}; this version reads format {FORMAT}"
        raise UserError(what, where, "go on with the version that wrote it, or name a new folder: run=runs/NAME")
    strange = [name for name in files if not _NAME.fullmatch(name)]
    if strange:
        raise ValueError(f"its manifest names the file {strange[0]!r}")
    return manifest
