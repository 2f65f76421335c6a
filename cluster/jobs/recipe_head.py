"""What a recipe's head, the comment it begins with, says is to be expected of its run."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from sharding.base.text import read_text

_EXPECTED = re.compile(r"^Expected: (.*?)(?= (?:Hardware|Command): |$)")


def expected_of(config: str) -> str:
    """What the head of this settings file says after "Expected:", on one line; "" where it says nothing.

    Raises UserError if the file cannot be read.
    """
    return expected_in(read_text(Path(config), config, "settings file")) if config else ""


def expected_in(recipe: str) -> str:
    """The expectation in a recipe's text: a line of its head, and those that go on from it, indented deeper."""
    head = [line.removeprefix("#").removeprefix(" ") for line in takewhile(_is_comment, recipe.splitlines())]
    for number, line in enumerate(head):
        if line.startswith("Expected: "):
            more = takewhile(lambda below: below.startswith(" "), head[number + 1 :])
            found = _EXPECTED.match(" ".join([line, *map(str.strip, more)]))
            return found[1].strip() if found else ""
    return ""


def _is_comment(line: str) -> bool:
    return line.startswith("#")
