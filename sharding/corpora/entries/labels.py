"""Turns the labels of a corpus, names or numbers, into class indices."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal

from sharding.base.errors import UserError
from sharding.base.text import nfc
from sharding.corpora.entries.roots import printable

MOST = 100_000  # classes; a list with more has some other column in the place of labels
Meaning = Literal["names", "numbers", "either"]
Labels = tuple[str | int, ...]

SEPARATORS = (",", ";", "|")  # that other tools put between several labels
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_FLOAT = re.compile(r"[+-]?\d{1,18}(\.\d{0,30})?([eE][+-]?\d{1,2})?")


def class_name(label: str) -> str:
    """The class name that a label stands for: without blanks around it, in Unicode's composed form, printable."""
    return nfc(printable(label.strip() or label))


class LabelEncoder:
    """Collects the labels of all rows, then maps each to a class index.

    `meaning`: "names" where a label is always a class' name, "numbers" where it is always a 0-based index; "either":
    a name of `names` is that class, a number an index; without `names`, numbers are indices if all labels are numbers.
    Whole floats (`3.0`, as tables write a column of numbers with an empty cell) are numbers.

    After `assign_classes`, `listed_classes` holds the indices of the classes that the corpus itself names, and
    `counts_from_one` whether the labels are indices that seem to count from 1.
    """

    def __init__(self, meaning: Meaning, names: Sequence[str] | None, where: str) -> None:
        self.meaning = meaning
        self.names = None if names is None else tuple(names)
        self._where = where
        self._seen: dict[str | int, int] = {}
        self._codes: dict[Labels, str] = {}
        self._classes: tuple[str, ...] = ()
        self._index: list[int | None] = []
        self.listed_classes: tuple[int, ...] = ()
        self.counts_from_one = False

    def encode(self, labels: Labels) -> str:
        """A short code for the labels of a row, which `class_reader` decodes. Raises UserError past `MOST` labels."""
        code = self._codes.get(labels)
        if code is None:
            code = ",".join(str(self._seen.setdefault(label, len(self._seen))) for label in labels)
            if len(self._seen) > MOST:
                remedy = "see that the label column holds classes; an index or a title is none"
                raise UserError(f"there are more than {MOST:,} labels", self._where, remedy)
            if len(self._codes) >= 65536:
                self._codes.clear()
            self._codes[labels] = code
        return code

    def assign_classes(self, classes: Sequence[str] | None = None) -> tuple[str, ...]:
        """The class names, by index, once all labels are collected; `classes` keep their indices, new ones follow."""
        fixed = tuple(classes or ())
        names = None if self.names is None else tuple(map(class_name, self.names))
        listed: Sequence[str] = names or ()
        numbers = [number for label in self._seen if (number := _number(label)) is not None]
        if names is None and (self.meaning == "numbers" or (self.meaning == "either" and self._all_numbers())):
            count = max((number for number in numbers if 0 <= number < MOST), default=-1) + 1
            names = fixed + tuple(str(number) for number in range(len(fixed), count))
            listed = names[:count]
        if names is not None:
            place = {name: number for number, name in reversed(list(enumerate(names)))}
            self._index = [_index(label, place, len(names), self.meaning) for label in self._seen]
            uses_names = self.names is not None and any(class_name(str(label)) in place for label in self._seen)
            if self.meaning == "numbers" or (self.meaning == "either" and not uses_names):
                past = self.names is None or max(numbers, default=0) == len(names)
                self.counts_from_one = min(numbers, default=0) == 1 and past
        else:
            texts = [class_name(str(label)) for label in self._seen]
            names = listed = tuple(sorted(set(texts)))
            place = {name: number for number, name in enumerate(names)}
            self._index = [place[text] for text in texts]
        taken = set(fixed)
        self._classes = fixed + tuple(name for name in dict.fromkeys(names) if name not in taken)
        final = {name: number for number, name in reversed(list(enumerate(self._classes)))}
        self._index = [None if index is None else final[names[index]] for index in self._index]
        self.listed_classes = tuple(dict.fromkeys(final[name] for name in listed))
        return self._classes

    def names_among_numbers(self) -> list[str]:
        """The labels because of which all are taken as names, though some are numbers; [] where that is not so."""
        if self.meaning != "either" or self.names is not None or self._all_numbers():
            return []
        others = [str(label) for label in self._seen if _number(label) is None]
        return others if len(others) < len(self._seen) else []

    def compound_labels(self) -> list[tuple[str, str]]:
        """(label, separator) of the labels that look like several labels with a separator between them."""
        texts = [label for label in self._seen if isinstance(label, str)]
        names = {class_name(text) for text in texts} | set(self._classes)

        def parts(text: str, separator: str) -> bool:
            cut = text.split(separator)
            return len(cut) > 1 and all(class_name(one) in names or _number(one.strip()) is not None for one in cut)

        return [(text, mark) for text in texts for mark in SEPARATORS if parts(text, mark)]

    def _all_numbers(self) -> bool:
        """Whether all labels are numbers or "nan", which tables write for a missing number."""
        numbers = sum(_number(label) is not None for label in self._seen)
        missing = sum(isinstance(label, str) and label.lower() == "nan" for label in self._seen)
        return numbers > 0 and numbers + missing == len(self._seen)

    def class_reader(self) -> Callable[[str], tuple[tuple[int, ...], tuple[str, ...]]]:
        """A function from a row's code to (sorted class indices, labels that are no class)."""
        listed = list(self._seen)

        @functools.lru_cache(65536)
        def indices(code: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
            numbers = [int(number) for number in code.split(",")]
            good = {index for number in numbers if (index := self._index[number]) is not None}
            bad = [printable(str(listed[number])) for number in numbers if self._index[number] is None]
            return tuple(sorted(good)), tuple(bad)

        return indices


def read_names(text: str, where: str) -> tuple[str, ...]:
    """The class names in a text, one a line, line 1 being class 0. Raises UserError for an empty or repeated name."""
    names = [class_name(line) for line in text.split("\n")]
    while names and not names[-1]:
        names.pop()
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError("a line of the class names is empty", f"{where}, line {number}", "write one name a line")
        if name in seen:
            what = f"the class {name!r} is there twice, first in line {seen[name]}"
            raise UserError(what, f"{where}, line {number}", "give every class a name of its own")
        seen[name] = number
    if not names:
        raise UserError("the file of class names is empty", where, "write one name a line; line 1 is class 0")
    return tuple(names)


def _number(label: str | int) -> int | None:
    """The number that a label is, if it is a whole one; None for a name."""
    if isinstance(label, int):
        return label
    if not label.isascii():
        return None
    if _INTEGER.fullmatch(label):
        return int(label)
    value = Decimal(label) if _FLOAT.fullmatch(label) else None
    return int(value) if value is not None and value == value.to_integral_value() else None


def _index(label: str | int, place: dict[str, int], count: int, meaning: Meaning) -> int | None:
    """The class index that a label means among `count` classes; None if there is no such class."""
    if meaning != "numbers" and isinstance(label, str) and class_name(label) in place:
        return place[class_name(label)]
    number = None if meaning == "names" else _number(label)
    return number if number is not None and 0 <= number < count else None
