"""Long JSON lists are read entry by entry."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.corpora.formats import json_stream as jsonlist
from sharding.corpora.formats.json_stream import json_entries
from sharding.corpora.formats.list_file import ListFile

entries = st.lists(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=9) | st.none(), max_size=3), max_size=9
)


@settings(deadline=None)
@given(entries, st.sampled_from([None, 1]), st.integers(1, 12))
def test_json_is_read_the_same_whole_or_in_pieces(values: list[Any], indent: int | None, chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlist, "CHUNK", chunk)
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(values, indent=indent))
        assert [entry for _, _, entry in json_entries(ListFile(path, "x"))] == values
        path.write_text("\n".join(json.dumps(value, indent=indent) for value in values))
        assert [entry for _, _, entry in json_entries(ListFile(path, "x"))] == values
        named = {str(n): {"v": value} for n, value in enumerate(values)}
        path.write_text(json.dumps(named, indent=indent))
        assert {key: entry for _, key, entry in json_entries(ListFile(path, "x"))} == (named or {"": {}})
        two = {"train": [{"v": value} for value in values], "test": [{"w": 1}]}
        path.write_text(json.dumps(two, indent=indent))
        expected = [("train", {"v": value}) for value in values] + [("test", {"w": 1})]
        if values:
            assert [(key, entry) for _, key, entry in json_entries(ListFile(path, "x"))] == expected


def test_json_that_breaks_off_says_where(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for text, match in (
        ('[{"uri": "a"}, {"uri"', "entry 2"),
        ("[1 2]", "entry 2"),
        ("uri", "entry 1"),
        ("[1", "entry 2"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            list(json_entries(ListFile(path, str(path))))
