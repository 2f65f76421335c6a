"""A font made for a test: a full square for each of its characters."""

from __future__ import annotations

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

EM = 1000
SIDE = 900


def write_font(path: Path, characters: str, empty: bool = False, missing: bool = False) -> Path:
    """A TrueType font of these characters.

    With `empty` their glyphs have no outline, as in fonts that hide text; with `missing` they are the sign for a
    character that is missing.
    """
    names = {ord(character): f"u{ord(character):05x}" for character in characters}
    pen = TTGlyphPen(None)
    if not empty:
        pen.moveTo((50, 0))
        for point in ((50, SIDE), (50 + SIDE, SIDE), (50 + SIDE, 0)):
            pen.lineTo(point)
        pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *names.values()]
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(names)
    builder.setupGlyf(
        {name: TTGlyphPen(None).glyph() if name == ".notdef" and not missing else square for name in glyphs}
    )
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (EM, 50)))
    builder.setupHorizontalHeader(ascent=SIDE, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=SIDE, usWinAscent=SIDE, usWinDescent=100)
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return path
