"""Reads the lists of Sports-1M (Karpathy et al. 2014): text, `URL 12,305`, or JSON."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sharding.corpora.entries.rows import Refusal, Row
from sharding.corpora.formats.list_file import ListFile
from sharding.corpora.formats.tables import Malformed, RowOrRefusal, labels_of_value, shown, split_word, text_lines
from sharding.corpora.formats.video_ids import video_id

ID_FIELDS = ("id", "video_id", "videoId", "youtube_id", "url", "stitchTubeId")
LABEL_FIELDS = ("label487", "labels", "label")
SPLIT_FIELDS = ("source487", "split")

_INDICES = re.compile(r"\d+(,\d+)*,?")


def sports1m_rows(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
    """Rows of lines `URL 12,305`: the labels are 0-based indices."""
    for line, text in text_lines(file):
        if isinstance(text, Refusal):
            yield text
            continue
        address, *rest = text.split()
        labels = _sports1m_labels(rest[0]) if len(rest) == 1 else ()
        if rest and not labels:
            yield Refusal(shown(text), "malformed", "it is not an address, a space, and indices with commas", line)
        else:
            yield Row(video_id(address), labels, split, None, None, line)


@functools.lru_cache(65536)
def _sports1m_labels(text: str) -> tuple[str, ...]:
    return tuple(text.strip(",").split(",")) if _INDICES.fullmatch(text) else ()


def sports1m_json_rows(entries: Iterable[tuple[int, str, Any]], split: str) -> Iterator[RowOrRefusal]:
    """Rows of the JSON form: entries with an id or address, `label487` and perhaps `source487`, the split."""
    for number, key, entry in entries:
        if isinstance(entry, Refusal):
            yield entry
            continue
        if not isinstance(entry, dict):
            yield Refusal(shown(entry), "malformed", "it is not a JSON object", number)
            continue
        name = next((entry[field] for field in ID_FIELDS if entry.get(field)), None)
        in_split = key.lower() in ("train", "test", "val", "validation")
        name = str(key if name is None and not in_split else name or "")
        try:
            if not name:
                raise Malformed(f"it has none of {', '.join(ID_FIELDS)}")
            labels = labels_of_value(next((entry[field] for field in LABEL_FIELDS if field in entry), None))
            word = next((entry[field] for field in SPLIT_FIELDS if entry.get(field)), key if in_split else None)
            yield Row(video_id(name), labels, split_word(word, split), line=number)
        except Malformed as error:
            yield Refusal(shown(name), "malformed", str(error), number)
