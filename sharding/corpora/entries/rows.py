"""What a corpus' list says of its videos: rows, refusals, and names as they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sharding.corpora.entries.labels import Labels

IdsOfPath = Callable[[str], Sequence[str]]  # of a file's path: the id by which lists mean it, and maybe an alias


class Row(NamedTuple):
    """What a list says of one video. `name`: its path or URL, or the id to look for among the media's files.

    `whole`: another id to look for, should there be no file of id `name`; with times, that of the whole video of which
    they are a stretch. `bytes`: its size where the row comes from a listing of files.
    """

    name: str
    labels: Labels
    split: str = ""
    start: float | None = None
    end: float | None = None
    line: int = 0
    whole: str = ""
    bytes: int | None = None


class Refusal(NamedTuple):
    """What a list holds that is not planned, or planned with a remark."""

    name: str
    kind: str
    reason: str
    line: int


@dataclass(frozen=True)
class CorpusList:
    """One list of a corpus: where it is, what its numbers count ("line", "entry", "row"), and its rows."""

    where: str
    unit: str
    rows: Iterable[Row | Refusal]


def encode_name(text: str) -> bytes:
    """A name as it is kept, bytes that are not UTF-8 as they were."""
    return text.encode("utf-8", "surrogateescape")


def decode_name(name: bytes) -> str:
    """The name that was kept."""
    return name.decode("utf-8", "surrogateescape")
