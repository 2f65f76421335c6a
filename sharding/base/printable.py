"""Texts for a terminal, a table or a log: names that do nothing to it, and times in words.

Control characters and the like are written as their codes. Names of files and classes are stored as they are; this is
for the moment they are shown.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

_ACTS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, formats such as bidi overrides, lone halves, line ends
_JOINERS = "\u200c\u200d"  # which words of Persian and Hindi are written with, and emoji
_SUSPECT = re.compile(r"[^ -~]")


def visible(text: object) -> str:
    """A text on one line, in which control characters, bidirectional overrides and line ends are written as codes."""
    return _SUSPECT.sub(_code, str(text))


def visible_lines(text: object) -> str:
    """A text of several lines: as `visible`, but its line ends and tabs stay."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in str(text).split("\n"))


def duration(seconds: float) -> str:
    """A time in its two largest units: 12 s, 3 min 5 s, 5 h 20 min, 2 d 3 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = max(0, round(seconds))
    for (unit, length), (smaller, part) in itertools.pairwise(units):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit} {rest} {smaller}" if rest else f"{whole // length} {unit}"
    return f"{whole} s"


def _code(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _ACTS or character in _JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()
