"""Corpora of empty files and the manifests read from them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from sharding.corpora.manifest import CorpusSettings, Manifest, read_manifest


def make(root: Path, *paths: str) -> Path:
    """Make these files, of zeros, below a folder; returns the folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(2000))
    return root


def write(path: Path, text: str) -> str:
    """Write a text, whose surrogates stand for bytes; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


def read(corpus: str | Path, **values: Any) -> Manifest:
    """The manifest of a corpus, without a share for validation."""
    return read_manifest(str(corpus), CorpusSettings(**{"validation": 0.0, **values}))


def labels_by_uri(manifest: Manifest) -> dict[str, Any]:
    """uri → class names of every video."""
    return {v.uri: [manifest.classes[n] for n in v.labels] for v in manifest.videos()}


def refused(manifest: Manifest) -> set[tuple[str, str, str]]:
    """(name, kind, line as it is told) of what is left out."""
    told = list(manifest.refusals())
    assert sum(manifest.left_out.values()) == len(told)
    return {(one["uri"], one["kind"], one["where"].rpartition(", ")[2]) for one in told}


COMPOSED = "café 張 Ünder"


DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def of_lines(root: Path, *lines: str, name: str = "list.csv", **values: Any) -> Manifest:
    """A list of these lines, whose videos 0.mp4, 1.mp4, … are there."""
    make(root, *[f"{n}.mp4" for n in range(20)])
    (root / name).write_bytes("".join(line + "\n" for line in lines).encode())
    return read(root / name, **values)


def notes(manifest: Manifest) -> str:
    """A manifest's notes, one a line."""
    return "\n".join(manifest.notes)
