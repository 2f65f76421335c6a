"""The entries of a corpus' lists: rows, refusals, and names as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sharding.corpora.entries.labels import Labels

IdsOfPath = Callable[[str], Sequence[str]]  # a file's path → the id by which lists name it, and perhaps an alias


class Row(NamedTuple):
    """One video of a list. `name`: its path or URL, or the id to look for among the media's files.

    `fallback_id`: the id to look for if no file has the id `name`; of a row with times, that of the whole video.
    `bytes`: the file's size, where the row comes from a listing of files.
    """

    name: str
    labels: Labels
    split: str = ""
    start: float | None = None
    end: float | None = None
    line: int = 0
    fallback_id: str = ""
    bytes: int | None = None


class Refusal(NamedTuple):
    """An entry of a list that is not planned, or planned with a remark: its name, kind of reason, reason and line."""

    name: str
    kind: str
    reason: str
    line: int


@dataclass(frozen=True)
class CorpusList:
    """One list of a corpus: its place, the unit that its rows are numbered by ("line", "entry", "row"), its rows."""

    where: str
    unit: str
    rows: Iterable[Row | Refusal]


def encode_name(text: str) -> bytes:
    """A file's name as bytes; the inverse of `decode_name`, also for names that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def decode_name(name: bytes) -> str:
    """A file's name from its bytes; those that are not UTF-8 become surrogates."""
    return name.decode("utf-8", "surrogateescape")
