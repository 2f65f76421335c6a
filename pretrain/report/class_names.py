"""Class names in a report's figures: written by fonts that have them, else as numbers that the page explains."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontEntry, fontManager

from sharding.base.printable import visible
from sharding.pages.fonts import INSTALL_HINT, Fonts

log = logging.getLogger("reelscale")

_LENGTH = 26  # columns of a name, of which an ideograph takes two
_OWN = "DejaVu Sans"  # matplotlib's, which comes with it


@dataclass(frozen=True)
class Label:
    """A class' name as a figure writes it, and the families of the fonts that have its characters."""

    text: str
    families: tuple[str, ...] = (_OWN,)


def file_label(name: str, length: int) -> Label:
    """How a figure writes a file's name, cut to `length` columns: as escapes where no font has its letters."""
    own = _own_font()
    line = short(visible(name), length)
    written = Fonts([line], own).runs(line)
    if written is None:
        return Label(short(ascii(name)[1:-1], length))
    return Label(written.text, (_OWN, *(_family(file) for file in dict.fromkeys(written.files) if file != own)))


class ClassLabels:
    """How the figures write the classes.

    A name that the installed fonts cannot write is its class' number; `legend` has these numbers and names.
    """

    def __init__(self, classes: Sequence[str], used: Collection[str]) -> None:
        """`used`: the names that a figure writes; one warning is logged if fonts for some are missing."""
        own = _own_font()
        numbers = {name: number for number, name in enumerate(dict.fromkeys([*classes, *used]))}
        cut = {name: short(name) for name in sorted(used, key=numbers.__getitem__)}
        fonts = Fonts(cut.values(), own)
        self._labels: dict[str, Label] = {}
        self.legend: list[tuple[str, str]] = []
        for name, line in cut.items():
            written = fonts.runs(line) if line else None
            if written is None:
                self._labels[name] = Label(f"class {numbers[name]}")
                self.legend.append((f"class {numbers[name]}", name))
            else:
                self._labels[name] = Label(
                    written.text, (_OWN, *(_family(file) for file in dict.fromkeys(written.files) if file != own))
                )
        if self.legend:
            log.warning(
                "no installed font has the letters of %d classes' names (%s): figures show their numbers, and the page "
                "the names; %s", len(self.legend), ascii(self.legend[0][1]), INSTALL_HINT,
            )  # fmt: skip

    def __getitem__(self, name: str) -> Label:
        return self._labels[name]


def short(name: str, length: int = _LENGTH) -> str:
    """A class name on one line, cut to `length` columns."""
    name = " ".join(name.split())
    widths = [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in name]
    if sum(widths) <= length:
        return name
    kept = 0
    while sum(widths[: kept + 1]) < length:
        kept += 1
    return name[:kept] + "…"


def _own_font() -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def _family(file: Path) -> str:
    """A family of this file alone, so that matplotlib takes it and no other of the same name."""
    family = f"reelscale {file}"
    if all(entry.name != family for entry in fontManager.ttflist):
        for weight in (400, 700):  # captions are bold, and by this file all the same
            entry = FontEntry(fname=str(file), name=family, weight=weight, stretch="normal", size="scalable")
            fontManager.ttflist.append(entry)
    return family
