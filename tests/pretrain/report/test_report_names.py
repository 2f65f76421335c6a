"""Class names in a report: drawn by a font that has their letters, numbered where none has."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from pretrain.report.report import write_report
from sharding.base.printable import visible
from sharding.pages import fonts
from tests.pretrain.report.test_report import Page, write_run
from tests.support.fonts import write_font

SCRIPTS = [
    "跑步",
    "ジャンプ",
    "달리기",
    "नमस्ते",
    "\N{RUNNER}\u200d\N{FEMALE SIGN}\ufe0f run",
    "قفز",
    "Привет",
    "naïve Ελλ",
    "a\x07b",
]


DRAWN_BY_MATPLOTLIBS_OWN = {"قفز", "Привет", "naïve Ελλ"}


@pytest.fixture()
def font_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's font folder on a machine without other fonts."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("_SYSTEMS", "_MACS"):
        monkeypatch.setattr(fonts, name, ())
    return tmp_path / "data" / "fonts"


@pytest.fixture()
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """Every text of every figure that is drawn, and a warning (a missing glyph) is an error."""
    seen: list[Text] = []
    real = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            real(figure, *arguments, **options)
        seen.extend(text for text in figure.findobj(Text) if text.get_text() and text.get_visible())

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def undrawn(text: Text) -> set[str]:
    """The characters for which no font of the text has an outline."""
    files = [findfont(FontProperties(family=[family])) for family in text.get_fontfamily()]
    outlined = set()
    for file in files:
        font = FT2Font(file)
        for character in set(text.get_text()) & {chr(code) for code in font.get_charmap()}:
            font.load_char(ord(character))
            if character in " \u200d\u200e\ufe0f" or len(font.get_path()[0]):
                outlined.add(character)
    return set(text.get_text()) - outlined


@pytest.mark.slow
def test_names_that_no_font_writes_are_numbers_and_the_page_and_the_log_say_so(
    tmp_path: Path, font_folder: Path, texts: list[Text], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_report([write_run(tmp_path / "run", SCRIPTS)], tmp_path / "out")
    assert {str(text.get_text()): undrawn(text) for text in texts if undrawn(text)} == {}
    said = {text.get_text() for text in texts}
    numbers = {number: name for number, name in enumerate(SCRIPTS) if name not in DRAWN_BY_MATPLOTLIBS_OWN}
    assert said >= {f"class {number}" for number in numbers} | DRAWN_BY_MATPLOTLIBS_OWN
    legend = Page(path).html.partition("<h3>Names in the figures</h3>")[2].partition("</section>")[0]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", legend) == [
        (f"class {number}", visible(name)) for number, name in numbers.items()
    ]
    (warning,) = caplog.messages
    assert f"{len(numbers)} classes' names" in warning and "Noto" in warning and warning.isascii()


@pytest.mark.slow
def test_names_are_written_by_installed_fonts_that_have_them(
    tmp_path: Path, font_folder: Path, texts: list[Text], caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(SCRIPTS[:-1]):
        write_font(font_folder / f"{number}.ttf", "".join(set(name) - set(" \u200d\ufe0f")))
    path = write_report([write_run(tmp_path / "run", SCRIPTS[:-1])], tmp_path / "out")
    assert {str(text.get_text()): undrawn(text) for text in texts if undrawn(text)} == {}
    said = {text.get_text() for text in texts}
    assert said >= set(SCRIPTS[:-1])
    # An Arabic name does not turn its caption around.
    assert [text for text in said if "قفز" in text and not re.fullmatch("قفز|\u200e[✓✗] .*قفز\u200e.* %", text)] == []
    assert "Names in the figures" not in Page(path).html and not caplog.messages
