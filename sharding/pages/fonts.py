"""Chooses installed fonts for a text in any script, so that pictures show no boxes for missing letters."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import ImageFont

from sharding.base import environment

INSTALL_HINT = (
    "fonts are looked for in the system's folders and in ~/.local/share/fonts; Noto Sans (CJK) has most scripts"
)
LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"  # an invisible character
_SYSTEMS = ("/usr/share", "/usr/local/share")
_MACS = ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts")
_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
_FALSE = ("lastresort", "adobeblank", "notdef", "tofu")  # their glyphs are boxes, or nothing, for every character
_UNUSUAL = (
    "bold", "black", "heavy", "medium", "light", "thin", "italic", "oblique", "condensed", "mono", "serif", "display",
    "math",
)  # fmt: skip
_SIZE = 24  # pixels, at which a font's glyphs differ


@dataclass(frozen=True)
class FontRuns:
    """A text and the font file of each of its characters; neighbours have the same one where possible."""

    text: str
    files: tuple[Path, ...]

    def by_font(self) -> list[tuple[str, Path]]:
        """The text in pieces, each with its font file."""
        return [
            ("".join(character for character, _ in piece), file)
            for file, piece in groupby(zip(self.text, self.files, strict=True), key=lambda pair: pair[1])
        ]


class Fonts:
    """The fonts for a set of texts; each file is opened once, and only if a text needs more than the first font."""

    def __init__(self, texts: Iterable[str], first: Path | None = None) -> None:
        """`first`: the font to use wherever it has the characters; the others are those installed."""
        characters = {character for text in texts for character in text}
        self._has: dict[Path, set[str]] = {} if first is None else {first: _glyphs(first, characters)}
        needed = {character for character in characters if not _is_unseen(character)}.difference(*self._has.values())
        for file in installed() if needed else ():
            glyphs = _glyphs(file, characters)
            if glyphs & needed:
                self._has[file] = glyphs
            if glyphs >= needed:
                break
        self._first = first

    def runs(self, text: str) -> FontRuns | None:
        """The text with a font for each character, as few fonts as possible; None if no font has one of them.

        Invisible characters (joiners, variation selectors) that none of its fonts has are left out.
        """
        chosen = [] if self._first is None else [self._first]
        left = {character for character in text if not _is_unseen(character)}
        left = left.difference(*(self._has[file] for file in chosen))
        while left:
            best = max(self._has, key=lambda file: len(left & self._has[file]), default=None)
            if best is None or not left & self._has[best]:
                return None
            chosen.append(best)
            left -= self._has[best]
        kept: list[tuple[str, Path]] = []
        for character in text:
            files = [file for file in chosen if character in self._has[file] or character == " "]
            if files:
                before = kept[-1][1] if kept else None
                kept.append((character, before if before in files else files[0]))
        return FontRuns("".join(character for character, _ in kept), tuple(file for _, file in kept))


def installed() -> Iterator[Path]:
    """The font files of this machine and user, the upright regular ones without serifs first."""
    roots = [*(f"{folder}/fonts" for folder in (*environment.data_folders(), *_SYSTEMS)), "~/.fonts", *_MACS]
    files = {
        file
        for root in dict.fromkeys(os.path.expanduser(root) for root in roots)  # noqa: PTH111, which raises without a home
        for folder, _, names in os.walk(root)
        for name in names
        if (file := Path(folder, name)).suffix.lower() in _ENDINGS
    }
    named = {file: file.name.lower().replace("-", "").replace("sansserif", "") for file in files}
    plain = [file for file in files if not any(name in named[file] for name in _FALSE)]
    yield from sorted(plain, key=lambda file: (sum(word in named[file] for word in _UNUSUAL), named[file], str(file)))


def right_to_left(text: str) -> bool:
    """Whether any part of the text runs from right to left."""
    return any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)


def _is_unseen(character: str) -> bool:
    """Whether a character is invisible: a blank, a joiner, a mark of direction, a variation selector."""
    selects = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return character == " " or selects or unicodedata.category(character) == "Cf"


def _glyphs(file: Path, wanted: set[str]) -> set[str]:
    """Those of the characters that the font has: not drawn as a missing one and, if visible, not empty.

    None of them for a font that cannot be read, or has pictures of one size only (coloured emoji).
    """
    glyphs = set()
    with suppress(OSError, ValueError):
        font = ImageFont.truetype(file, _SIZE, layout_engine=ImageFont.Layout.BASIC)
        missing = font.getmask("\uffff")  # which is no character
        for character in wanted:
            if unicodedata.category(character) not in ("Cc", "Cs"):
                mask = font.getmask(character)
                differs = (mask.size, bytes(mask)) != (missing.size, bytes(missing))
                if differs and (mask.getbbox() is not None or _is_unseen(character)):
                    glyphs.add(character)
    return glyphs
