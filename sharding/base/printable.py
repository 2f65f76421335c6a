"""Texts as a terminal, a table or a log may have them: whatever would act there, or hide, is written as its code.

Names of files and classes are stored as they are; this is for the moment they are shown.
"""

from __future__ import annotations

import re
import unicodedata

_ACTS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, formats such as bidi overrides, lone halves, line ends
_JOINERS = "\u200c\u200d"  # which words of Persian and Hindi are written with, and emoji
_SUSPECT = re.compile(r"[^ -~]")


def visible(text: object) -> str:
    """A name or a value on one line: no control character, no bidirectional override, no end of a line."""
    return _SUSPECT.sub(_code, str(text))


def visible_lines(text: object) -> str:
    """A message of several lines: as `visible`, but its ends of lines and tabs stay."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in str(text).split("\n"))


def _code(found: re.Match[str]) -> str:
    character = found[0]
    if unicodedata.category(character) not in _ACTS or character in _JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()
