"""Reads the CSV lists of Kinetics (Kay et al. 2017): label, youtube_id, time_start, time_end, split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sharding.base.errors import UserError
from sharding.corpora.entries.roots import sanitised
from sharding.corpora.entries.rows import Refusal, Row
from sharding.corpora.formats.csv_table import csv_table
from sharding.corpora.formats.list_file import ListFile
from sharding.corpora.formats.tables import Malformed, RowOrRefusal, seconds, shown, split_word


def is_kinetics_header(header: Iterable[str]) -> bool:
    """Whether a CSV's first line is that of a Kinetics list."""
    return {"youtube_id", "time_start"} <= {name.strip().lower() for name in header}


def kinetics_rows(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
    """Rows of a Kinetics CSV. Raises UserError if its header is another.

    The file of a row is `ID_SSSSSS_EEEEEE`, which holds its stretch alone, or else `ID`, the whole video.
    """
    header, lines = csv_table(file)
    names = [name.strip().lower() for name in header]
    if not is_kinetics_header(header):
        what = f"this is no Kinetics list; its first line is: {sanitised(', '.join(header[:8]))}"
        remedy = "give the CSV with the header label,youtube_id,time_start,time_end,split"
        raise UserError(what, file.where, remedy)
    for line, cells in lines:
        if isinstance(cells, Refusal):
            yield cells
            continue
        value = dict(zip(names, cells, strict=False))
        name = value.get("youtube_id", "").strip()
        try:
            if not name or "/" in name:
                raise Malformed("it has no youtube_id")
            side = split_word(value.get("split"), split)
            start, end = seconds(value.get("time_start")), seconds(value.get("time_end"))
            label = value.get("label", "").strip()
            labels = (label,) if label else ()
            if start is None or end is None:
                yield Row(name, labels, side, start, end, line)
            elif not 0 <= start < end < 10**6:
                raise Malformed(f"the times {start} to {end} are not a stretch of a video")
            else:
                yield Row(f"{name}_{int(start):06d}_{int(end):06d}", labels, side, start, end, line, name)
        except Malformed as error:
            yield Refusal(shown(name), "malformed", str(error), line)
