"""Reads a JSON file that holds one long list, entry by entry: memory does not grow with it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from sharding.base.errors import UserError
from sharding.corpora.formats.list_file import ListFile

CHUNK = 2**18  # characters read at once
LONGEST = 16 * 2**20  # characters of one entry
_SPACE = " \t\r\n"


def json_entries(file: ListFile) -> Iterator[tuple[int, str, Any]]:
    """(number from 1, key, entry) of a JSON array, of objects one after the other, or of one object of objects.

    `key` is the entry's own name in an object of objects, the list's in an object of arrays (of objects), else "".
    Raises UserError, with the entry's number, where the file is no JSON.
    """
    with file.opened() as text:
        scanner = _Scanner(text, file.where)
        first = scanner.peek()
        if first == "[":
            yield from scanner.array("")
        elif first == "{":
            yield from scanner.mapping()
        elif first:
            scanner.fail("it begins neither with [ nor with {")


class _Scanner:
    """Decodes one JSON value after the other from a text of which little is in memory."""

    def __init__(self, file: io.TextIOBase, where: str) -> None:
        self._file = file
        self._where = where
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode
        self._number = 0

    def fail(self, problem: str) -> None:
        """Raise UserError with the problem and the entry's number."""
        remedy = "correct the file there, or get it again"
        raise UserError(f"not valid JSON: {problem}", f"{self._where}, entry {self._number + 1}", remedy)

    def peek(self) -> str:
        """The next character that is not white space, without going past it; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Go past the expected character. Raises UserError if another comes."""
        character = self.peek()
        if character != expected:
            self.fail(f"{expected} should come, but {character or 'the end'} does")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                self.fail("it is nested too deeply")
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > LONGEST:
                    self.fail("the entry is too long")
                if not self._more():
                    self.fail(error.msg)
            except ValueError as error:  # Python reads no number of more than 4,300 digits
                self.fail(str(error))
            else:
                # A number that ends where the text in memory ends may go on.
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value

    def array(self, key: str) -> Iterator[tuple[int, str, Any]]:
        """The entries of an array."""
        self.take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            value = self.value()
            self._number += 1
            yield self._number, key, value
            if self.peek() == "]":
                self._at += 1
                return
            self.take(",")

    def mapping(self) -> Iterator[tuple[int, str, Any]]:
        """The entries of an object of objects or arrays; or objects one after the other, which are entries."""
        start = self._at
        self.take("{")
        kind = ""
        if self.peek() != "}":
            self.value()
            self.take(":")
            kind = self.peek()
        if kind == "[":
            self._at += 1
            kind += self.peek()
        nested = kind in ("{", "[{")
        self._at = start  # all of this is still in memory: nothing is thrown away before an entry is complete
        if not nested:
            while self.peek():
                value = self.value()
                self._number += 1
                yield self._number, "", value
            return
        self.take("{")
        while True:
            key = self.value()
            self.take(":")
            if self.peek() == "[":
                yield from self.array(key)
            else:
                value = self.value()
                self._number += 1
                yield self._number, key, value
            if self.peek() == "}":
                return
            self.take(",")

    def _more(self) -> bool:
        """Read more of the file into memory; False at its end."""
        if self._ended:
            return False
        if len(self._text) > 4 * LONGEST:
            self.fail("there is no entry in it for far too long")
        rest = len(self._text) - self._at
        chunk = self._file.read(max(CHUNK, rest))  # as much again as waits, so that a long entry is not tried often
        self._ended = not chunk
        if self._number:
            self._text, self._at = self._text[self._at :], 0
        self._text += chunk
        return bool(chunk)
