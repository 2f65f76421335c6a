"""Which installed fonts write a text: for pictures with names in any script, in which nobody is to see boxes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fontTools.pens.boundsPen import BoundsPen
from fontTools.ttLib import TTFont

SEE = "fonts are looked for in the system's folders and in ~/.local/share/fonts; Noto Sans (CJK) has most scripts"
_SYSTEMS = ("/usr/share", "/usr/local/share")
_MACS = ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts")
_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
_FALSE = ("lastresort", "adobeblank", "notdef", "tofu")  # their glyphs are boxes, or nothing, for every character
_UNUSUAL = (
    "bold", "black", "heavy", "medium", "light", "thin", "italic", "oblique", "condensed", "mono", "serif", "display",
)  # fmt: skip
_COLOURED = ("CBDT", "sbix", "COLR", "SVG ")  # emoji that neither matplotlib nor Pillow draws


@dataclass(frozen=True)
class Written:
    """A text as it can be drawn, and the files of the fonts that have all of its characters, the first preferred."""

    text: str
    fonts: tuple[Path, ...]


class Fonts:
    """The fonts for a set of texts: each file is opened once, and only if a text needs more than the first font."""

    def __init__(self, texts: Iterable[str], first: Path | None = None) -> None:
        """`first`: a font that is taken wherever it does; the others are those installed."""
        needed = {character for text in texts for character in text if not _unseen(character)}
        self._first = first
        self._has: dict[Path, set[str]] = {}
        if first is not None:
            self._has[first] = _drawn(first, needed)
            needed -= self._has[first]
        needed = {character for character in needed if unicodedata.category(character)[0] != "C"}
        for file in installed() if needed else ():
            found = _drawn(file, needed)
            if found:
                self._has[file] = found
            if found == needed:
                break

    def written(self, text: str) -> Written | None:
        """How to draw the text, by as few fonts as will do; None if the fonts lack one of its characters.

        Characters that are not seen (joiners, variation selectors) and that no font of it has are left out.
        """
        needed = {character for character in text if not _unseen(character)}
        chosen = [self._first] if self._first is not None else []
        left = needed - {character for file in chosen for character in self._has[file]}
        while left:
            best = max(self._has, key=lambda file: len(left & self._has[file]), default=None)
            if best is None or not left & self._has[best]:
                return None
            chosen.append(best)
            left -= self._has[best]
        kept = needed | {" "} | {c for c in text if _unseen(c) and any(_drawn(file, {c}, True) for file in chosen)}
        return Written("".join(character for character in text if character in kept), tuple(chosen))


def installed() -> Iterator[Path]:
    """The files of the fonts of this machine and user, the upright regular ones without serifs first."""
    data = os.environ.get("XDG_DATA_DIRS") or ":".join(_SYSTEMS)
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    roots = [*(f"{folder}/fonts" for folder in (home, *data.split(":"), *_SYSTEMS)), "~/.fonts", *_MACS]
    files = {
        file
        for root in dict.fromkeys(Path(root).expanduser() for root in roots)
        for folder, _, names in os.walk(root)
        for name in names
        if (file := Path(folder, name)).suffix.lower() in _ENDINGS
    }
    named = {file: file.name.lower().replace("-", "").replace("sansserif", "") for file in files}
    plain = [file for file in files if not any(name in named[file] for name in _FALSE)]
    yield from sorted(plain, key=lambda file: (sum(word in named[file] for word in _UNUSUAL), named[file], str(file)))


def right_to_left(text: str) -> bool:
    """Whether a part of the text runs from right to left."""
    return any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)


def _unseen(character: str) -> bool:
    """Whether nothing is drawn for it: a blank, a joiner, a mark of direction, a variation selector."""
    selects = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return character == " " or selects or unicodedata.category(character) == "Cf"


def _drawn(file: Path, wanted: set[str], empty: bool = False) -> set[str]:
    """Those of the characters for which the font has an outline, or with `empty` a glyph; none for one not readable."""
    try:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            if any(table in font for table in _COLOURED):
                return set()
            names = font.getBestCmap() or {}
            found = {character for character in wanted if ord(character) in names}
            if not found or empty:
                return found
            glyphs = font.getGlyphSet()
            return {character for character in found if _bounds(glyphs, names[ord(character)]) is not None}
    except Exception:  # a damaged font can raise anything, and another may do
        return set()


def _bounds(glyphs: object, name: str) -> Sequence[float] | None:
    pen = BoundsPen(glyphs)
    glyphs[name].draw(pen)  # type: ignore[index]
    bounds: Sequence[float] | None = pen.bounds
    return bounds
