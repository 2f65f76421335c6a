"""Words that say nothing to who did not write them: no name that lives longer than a glance is one."""

from __future__ import annotations

import ast

import pytest

from tests.support.long_lived_names import long_lived
from tests.support.source_code import MODULES, ROOT, TEST_FILES, parsed, relative

RIDDLES = {"told", "found", "there", "mine", "known", "given"}
# Files were called so; each has a name of the field now (CONTRIBUTING.md).
OLD_FILES = {
    "ahead", "aside", "begin", "checks", "clusters", "exchange", "exports", "gather", "health", "in_vain", "judge",
    "lifeline", "nursery", "paths", "peak", "pulse", "recent", "recognise", "remarks", "session", "settle",
    "shapes", "tally", "trouble", "verdict", "visible", "wire", "world",
}  # fmt: skip
HYPOTHESIS = {"given"}  # what it calls its decorator, in tests


def names_in(code: str) -> list[tuple[int, str]]:
    return long_lived(ast.parse(code), RIDDLES)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def told():\n    pass", [(1, "told")]),
        ("class Found:\n    pass", [(1, "Found")]),
        ("class A:\n    known: int", [(2, "known")]),
        ("class A:\n    def f(self):\n        self._there = 1", [(3, "_there")]),
        ("def f(*, given=1):\n    return given", [(1, "given")]),
        ("def f():\n    found = 1\n    a()\n    b()\n    return found", [(2, "found")]),
        ("def f():\n    found = 1\n    a()\n    return found", []),
        ("def f():\n    found = 1\n    a()\n    def g():\n        return found", [(2, "found")]),
        ("def f():\n    return found\n\n\n\ndef g():\n    return found", []),
        ("def f():\n    for _, told in a:\n        b()\n        c()\n        told.d()", [(2, "told")]),
        ("try:\n    a()\nexcept E as mine:\n    b()\n    c()\n    print(mine)", [(3, "mine")]),
        ("a = [known for known in b]\nc()\nd()\ne = [known for known in f]", []),
        ("a = [\n    known\n    for b in c\n    for d in e\n    for known in f\n]", [(2, "known")]),
        ("a = lambda told: (\n    b,\n    c,\n    told)", [(1, "told")]),
        ("a = lambda told: told", []),
        ("a.find(found=b)\n\n\n\nprint(unfound)", []),
    ],
)
def test_names_are_really_looked_at(code: str, expected: list[tuple[int, str]]) -> None:
    assert names_in(code) == expected


def test_what_lives_long_is_named_by_what_it_holds() -> None:
    riddles = {relative(path): long_lived(parsed(path), RIDDLES) for path in MODULES}
    riddles |= {relative(path): long_lived(parsed(path), RIDDLES - HYPOTHESIS) for path in TEST_FILES}
    assert {path: names for path, names in riddles.items() if names} == {}


def test_no_file_has_a_name_that_only_its_author_reads() -> None:
    names = {relative(path): path.stem for path in [*MODULES, *TEST_FILES]}
    names |= {relative(path.parent): path.parent.name for path in MODULES if path.parent != ROOT}
    assert {path for path, name in names.items() if name.removeprefix("test_") in OLD_FILES | RIDDLES} == set()
