"""Lines of a CSV, broken ones among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharding.corpora.entries.rows import Refusal
from sharding.corpora.formats import tables
from sharding.corpora.formats.list_file import ListFile


@pytest.mark.parametrize(
    "rest", ["b.mp4,run\nc.mp4,run\n", '"b.mp4",run\nc.mp4,run\n', "b.mp4,run\nc.mp4,run\n" * 9000]
)
def test_a_quote_that_is_never_closed_swallows_no_other_line(tmp_path: Path, rest: str) -> None:
    text = 'uri,label,note\n"a.mp4,run\n' + rest + 'd.mp4,run,"two\nlines"\ne.mp4,run\n'
    (tmp_path / "list.csv").write_text(text)
    entries = list(tables.csv_rows(ListFile(tmp_path / "list.csv", "list.csv")))
    refused = [row for row in entries if isinstance(row, Refusal)]
    assert [(row.name.strip(), row.kind, row.line) for row in refused] == [('"a.mp4,run', "malformed", 2)]
    rows = [(row.name, row.line) for row in entries if not isinstance(row, Refusal)]
    after = 3 + rest.count("\n")
    assert rows[:2] == [("b.mp4", 3), ("c.mp4", 4)] and rows[-2:] == [("d.mp4", after), ("e.mp4", after + 2)]
    assert len(rows) == rest.count("\n") + 2
