"""Texts as parts of files' names: short enough for a file system, which counts bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.base.text import file_name


@pytest.mark.parametrize(
    ("text", "longest", "name"),
    [
        ("ski/slope 7.mp4", 60, "ski-slope-7.mp4"),
        ("../-..", 60, ""),
        ("é" * 9, 11, "é" * 5),
        ("进球集锦", 11, "进球集"),
        ("a\x00b\udcffc", 60, "a-b-c"),
    ],
)
def test_what_is_kept_of_a_text(text: str, longest: int, name: str) -> None:
    assert file_name(text, longest) == name


@given(st.text(), st.integers(1, 40))
def test_a_name_is_no_longer_and_has_no_folder(text: str, longest: int) -> None:
    name = file_name(text, longest)
    assert len(name.encode()) <= longest and "/" not in name and not name.startswith((".", "-"))
