"""Files by which Prometheus finds processes (its file_sd): one a process, there while it is served."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.monitor.page import Source
from sharding.base import environment
from sharding.base.atomic import atomic_write
from sharding.base.redact import redacted
from sharding.base.user_paths import expanded

JOB = "reelscale"
_META = "__meta_reelscale_"  # begins labels that Prometheus does not keep: they are for `reelscale status`


@dataclass(frozen=True)
class Target:
    """A process by its file: served at `place` (HOST:PORT). What the file does not say is "", the rank None.

    `folder`: the path or URL of the run's folder, or of the store.
    """

    place: str
    scheme: str = "http"
    kind: str = ""
    run: str = ""
    rank: int | None = None
    node: str = ""
    folder: str = ""


def targets_folder(named: str | None) -> Path:
    """The folder of these files, absolute: the one that settings name, else `targets` in the cache."""
    return expanded(named or environment.cache_folder() / "targets").absolute()


def target_file(folder: Path, source: Source, identity: str) -> Path:
    """The file of a rank: the same for its next attempt, and another for a run of that name elsewhere.

    `identity`: the path or URL of the run's folder, or of the store.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", source.run)[:64]
    digest = hashlib.sha256(f"{source.kind} {identity}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return folder / f"{name}-{digest}-{source.rank:05d}.json"


def write_target(file: Path, source: Source, place: str, scheme: str, identity: str) -> None:
    """Write a process' file: it is served at `place` (HOST:PORT); `identity` as above. Raises OSError."""
    labels = {"job": JOB, "kind": source.kind, "__scheme__": scheme}
    whose = {"run": source.run, "rank": str(source.rank), "node": source.node, "folder": redacted(identity)}
    labels |= {_META + name: value for name, value in whose.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, durable=False) as temporary:
        temporary.write_text(json.dumps([{"targets": [place], "labels": labels}], indent=1) + "\n")


def read_targets(folder: Path) -> list[Target]:
    """The processes whose files lie in a folder, by the files' names; what is no such file is left out."""
    targets = list[Target]()
    for file in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            targets += _targets_in(json.loads(file.read_text(encoding="utf-8")))
    return targets


def _targets_in(entries: list[dict[str, Any]]) -> Iterator[Target]:
    for entry in entries:
        labels = {str(name): str(value) for name, value in entry["labels"].items()}
        rank = labels.get(f"{_META}rank", "")
        for place in entry["targets"]:
            yield Target(
                str(place),
                labels.get("__scheme__", "http"),
                labels.get("kind", ""),
                labels.get(f"{_META}run", ""),
                int(rank) if rank.isdecimal() else None,
                labels.get(f"{_META}node", ""),
                labels.get(f"{_META}folder", ""),
            )


def ports_of_others(file: Path, host: str) -> set[int]:
    """The ports of a host that files beside this one name: of processes that are there, or were killed.

    Who answered at a killed one's port would hide from Prometheus that it is missed.
    """
    ports = set()
    for other in file.parent.glob("*.json"):
        if other != file:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
                places = [place for each in json.loads(other.read_text()) for place in each["targets"]]
                ports |= {int(place.rpartition(":")[2]) for place in places if place.rpartition(":")[0] == host}
    return ports


def remove_target(file: Path, source: Source) -> None:
    """Remove a process' file; with the first rank's those that killed ranks of the run have left: it has ended."""
    ranks = file.parent.glob(f"{file.name.rpartition('-')[0]}-*.json") if source.rank == 0 else [file]
    with contextlib.suppress(OSError):
        for each in ranks:
            each.unlink(missing_ok=True)
