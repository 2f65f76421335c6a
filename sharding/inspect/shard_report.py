"""What verification finds: a Damage, the report of a shard, and what all shards of a store must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sharding.format.record import is_part_path, part_path, record_path

Decode = Literal["none", "sample", "all"]


@dataclass(frozen=True, order=True)
class Damage:
    """Something that is not as it was written: `what`, and where; the more fields are set, the more exactly.

    `split` and `job` are "" where it concerns the whole store; `part` is None where it concerns the record; `path` is
    that of the part.
    """

    split: str
    job: str
    part: int | None
    key: str | None
    what: str
    path: str = ""

    @property
    def where(self) -> str:
        """The object's path in the store, and the sample's key."""
        if not self.job:
            return "the store"
        path = self.path or record_path(self.split, self.job)
        return path if self.key is None else f"{path}, sample {self.key}"


@dataclass(frozen=True)
class Expectations:
    """What all shards of a store must agree with, None where it is not known; `decode`: which samples to decode."""

    classes: int | None
    settings_digest: str | None
    decode: Decode


@dataclass
class ShardReport:
    """The result of checking a shard. `parts`: as its record describes them; `key_prefixes`: 8 bytes a sample.

    `decoded`: how many samples were decoded; `failure_list`: the path of its failure list; `unreadable`: its record
    cannot be read, so that nothing else is known of it.
    """

    split: str
    job: str
    damages: list[Damage] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    samples: int = 0
    decoded: int = 0
    unreadable: bool = True
    key_prefixes: bytes = b""
    bytes: int = 0
    failure_list: str | None = None

    def add(self, what: str, part: int | None = None, key: str | None = None) -> None:
        """Add a damage."""
        path = "" if part is None else self.path(part)
        self.damages.append(Damage(self.split, self.job, part, key, what, path))

    def path(self, number: int) -> str:
        """The path of a part: the record's, if it is one of this part (a damaged record could name any object)."""
        part = self.parts[number]
        recorded = str(part.get("path"))
        if is_part_path(recorded, self.split, self.job, number):
            return recorded
        return part_path(self.split, self.job, number, str(part.get("sha256")))

    @property
    def names_only_its_parts(self) -> bool:
        """Whether its record can be read and names parts of this shard alone."""
        return not self.unreadable and all(part.get("path") == self.path(n) for n, part in enumerate(self.parts))
