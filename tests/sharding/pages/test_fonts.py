"""Fonts for names in any script: found among those installed, and none that draws boxes or nothing."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sharding.inspect.contact_sheet import Tile, draw_sheet
from sharding.pages import fonts
from sharding.pages.fonts import Fonts
from tests.support.fonts import write_font

RUN, LEAP, HINDI, ARABIC, KOREAN = "跑步", "ジャンプ", "नमस्ते", "قفز", "달리기"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's font folder on a machine that has no other fonts."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fonts, "_SYSTEMS", ())
    monkeypatch.setattr(fonts, "_MACS", ())
    return tmp_path / "fonts"


def written(installed_fonts: Fonts, text: str) -> fonts.FontRuns:
    how = installed_fonts.runs(text)
    assert how is not None
    return how


def test_a_font_that_has_the_letters_is_found(folder: Path) -> None:
    chinese, more = write_font(folder / "chinese.ttf", RUN), write_font(folder / "deep" / "z.ttf", RUN + HINDI)
    installed_fonts = Fonts([RUN, HINDI, KOREAN, "run"], first=None)
    (piece,) = written(installed_fonts, RUN).by_font()
    assert piece in ((RUN, chinese), (RUN, more))
    assert written(installed_fonts, HINDI).by_font() == [(HINDI, more)]
    assert installed_fonts.runs(KOREAN) is None and installed_fonts.runs("run") is None


def test_two_fonts_write_what_none_has_whole(folder: Path) -> None:
    one, two = write_font(folder / "one.ttf", f"{RUN}a"), write_font(folder / "two.ttf", f"{HINDI}a")
    text = f"{RUN} a{HINDI}a"
    assert written(Fonts([text]), text).by_font() == [(f"{RUN} a", one), (f"{HINDI}a", two)]


def test_the_first_font_is_asked_first(folder: Path) -> None:
    first, other = write_font(folder / "first.ttf", "abc" + RUN), write_font(folder / "other.ttf", RUN + LEAP)
    found = Fonts([f"abc {RUN}", LEAP], first)
    assert written(found, f"abc {RUN}").by_font() == [(f"abc {RUN}", first)]
    assert written(found, LEAP).by_font() == [(LEAP, other)]


def test_fonts_that_draw_boxes_or_nothing_are_none(folder: Path) -> None:
    write_font(folder / "LastResortHE-Regular.ttf", RUN)
    write_font(folder / "blank.ttf", RUN, empty=True)
    write_font(folder / "boxes.ttf", RUN, missing=True)
    (folder / "damaged.ttf").write_bytes(b"no font")
    assert Fonts([RUN]).runs(RUN) is None


def test_joiners_and_selectors_are_left_out_where_no_font_has_them(folder: Path) -> None:
    runner = "\N{RUNNER}"
    text = f"{runner}\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}"
    write_font(folder / "runner.ttf", runner)
    assert written(Fonts([text]), text).text == runner
    write_font(folder / "runner.ttf", f"{runner}\N{ZERO WIDTH JOINER}")
    assert written(Fonts([text]), text).text == text[:2]


def test_upright_regular_fonts_come_first(folder: Path) -> None:
    for name in ("A-Black.ttf", "B-Regular.ttf", "A-BoldItalic.ttf", "C-Serif.otf"):
        write_font(folder / name, RUN)
    assert next(fonts.installed()).name == "B-Regular.ttf"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
def test_what_is_written_has_a_glyph(text: str) -> None:
    """In DejaVu, which has thousands of letters and not all."""
    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    with TTFont(own, lazy=True) as font:
        has = {chr(code) for code in font.getBestCmap()}
    runs = Fonts([text], own).runs(text)
    seen = [c for c in text if c != " " and unicodedata.category(c) != "Cf" and not 0xFE00 <= ord(c) <= 0xFE0F]
    if runs is None:
        assert any(character not in has or unicodedata.category(character)[0] in "ZC" for character in seen)
    else:
        assert set(runs.text) - {" "} <= has and set(runs.files) <= {own}


def below(sheet: bytes) -> np.ndarray:
    """The line of the first tile's name, 1 where it is dark."""
    return np.asarray(Image.open(io.BytesIO(sheet)).convert("L"))[138:160, 10:180] < 128


@pytest.mark.parametrize("name", [RUN, LEAP, KOREAN, "Привет", "naïve Straße"])
def test_a_sheet_is_written_with_a_font_that_has_the_letters(folder: Path, name: str) -> None:
    tile = Tile(None, (0,), "train")
    assert draw_sheet([tile], [name]).legend == {"class 0": name}
    write_font(folder / "font.ttf", "".join(set(name) - {" "}))
    sheet = draw_sheet([tile], [name])
    assert sheet.legend == {}
    squares = 13 * 13 * 0.81 * len(name.replace(" ", ""))  # each fills 0.9 of the size of 13 pixels, twice
    assert below(sheet.png).sum() == pytest.approx(squares, rel=0.25)


def test_a_name_of_two_scripts_is_written_by_two_fonts_and_cut_to_its_room(folder: Path) -> None:
    write_font(folder / "one.ttf", RUN)
    write_font(folder / "two.ttf", HINDI)
    tile = Tile(None, (0,), "train")
    for count in (1, 40):
        sheet = draw_sheet([tile], [f"{RUN} {HINDI}" * count])
        squares = 13 * 13 * 0.81 * min(count * 8, 12)
        assert sheet.legend == {} and below(sheet.png).sum() == pytest.approx(squares, rel=0.25)


def test_a_name_that_no_font_has_is_a_number_with_its_name_beside(folder: Path) -> None:
    tiles = [Tile(None, (number,), "train") for number in range(4)]
    sheet = draw_sheet(tiles, ["run", RUN, "\N{RUNNER}", "caf\u00e9"])
    assert sheet.legend == {"class 1": RUN, "class 2": "\N{RUNNER}"}
