"""What a name may do to a terminal: nothing."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.base.printable import duration, visible, visible_lines


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("jump", "jump"),
        ("Straße 跳 \u3000 👩‍🚀 نامه‌ها", "Straße 跳 \u3000 👩‍🚀 نامه‌ها"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x1b]0;title\x07", r"a\x1b]0;title\x07"),
        ("a\nremedy: none", r"a\nremedy: none"),
        ("100 %\rok", r"100 %\rok"),
        ("a\tb\x7f\x9b31m", r"a\tb\x7f\x9b31m"),
        ("gpj.\u202eexe\u2066\u200e", r"gpj.\u202eexe\u2066\u200e"),
        ("a\u2028b\u2029\u0085", r"a\u2028b\u2029\x85"),
        ("\udcff\ufeff", r"\udcff\ufeff"),
        (r"a\x1b", r"a\x1b"),
    ],
)
def test_names(name: str, seen: str) -> None:
    assert visible(name) == seen


@given(st.text())
def test_nothing_acts(text: str) -> None:
    kept = {"\u200c", "\u200d"}
    assert not {c for c in visible(text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - kept
    assert not {c for c in visible_lines(text) if unicodedata.category(c) in ("Cc", "Cf")} - kept - {"\n", "\t"}
    assert visible(visible(text)) == visible(text) and visible_lines(text).count("\n") == text.count("\n")
    assert len(visible(text).splitlines()) <= 1


def test_a_mistake_is_told_in_its_three_lines() -> None:
    error = UserError("two\nlines \x1b[2J", "a\nb\x1b[31m", "do \u202ethis")
    assert str(error) == "two\nlines \\x1b[2J\n  where: a\\nb\\x1b[31m\n  remedy: do \\u202ethis"
    again = pickle.loads(pickle.dumps(error))
    assert (again.what, again.where) == (error.what, error.where) == ("two\nlines \x1b[2J", "a\nb\x1b[31m")


def test_durations_in_words() -> None:
    times = (0.4, 12.2, 59.4, 59.6, 185, 720, 7300, 12_000, 19_200, 180_000, 300_000)
    assert [duration(each) for each in times] == [
        "0 s", "12 s", "59 s", "1 min", "3 min 5 s", "12 min", "2 h 1 min", "3 h 20 min", "5 h 20 min", "2 d 2 h",
        "3 d 11 h",
    ]  # fmt: skip
