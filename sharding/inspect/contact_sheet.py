"""Draws the contact sheet of a store: middle frames of a few samples of its classes and shards, as a PNG."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import av
import av.error
from PIL import Image, ImageDraw, ImageFont, features

from sharding.base.errors import UserError
from sharding.format.index import Index, Part
from sharding.format.record import read_record
from sharding.pages.fonts import Fonts, right_to_left
from sharding.storage.store import Store

COLUMNS = 6
Pieces = list[tuple[str, Any]]  # pieces of a text, each with Pillow's font for it
_PICTURE = (170, 128)  # pixels of a sample's picture, at most
_GAP, _LINE, _SIZE = 10, 17, 13
_LONGEST = 100  # characters of a name's piece, of which a picture's width has room for fewer
_HAS_RAQM = features.check("raqm")  # whether Pillow joins and orders letters
_INK, _FAINT, _PAPER, _EMPTY = "#1f2933", "#7b8794", "#ffffff", "#edf0f3"


@dataclass(frozen=True)
class Tile:
    """One sample of the sheet: its picture, None if it cannot be read, its labels and split."""

    picture: Image.Image | None
    labels: tuple[int, ...]
    split: str


@dataclass(frozen=True)
class Sheet:
    """A sheet's PNG; `legend`: caption → name of the classes that it shows by number, for want of a font."""

    png: bytes
    legend: dict[str, str]


def contact_sheet(store: Store, index: Index, samples: int = 60) -> Sheet:
    """A PNG of up to `samples` samples' middle frames with their class names, the same for the same index.

    Reads the records of the shards they lie in, and of the tars only the packets it shows. A sample that cannot be
    read is an empty picture. Raises UserError if a record cannot be read.
    """
    by_shard: dict[tuple[str, str], list[tuple[Part, int | None]]] = {}
    for part, label in spread_over_classes(index.parts, samples):
        by_shard.setdefault((part.split, part.job), []).append((part, label))
    with ThreadPoolExecutor(8) as pool:
        tiles_by_shard = pool.map(lambda shard: _tiles(store, shard, by_shard[shard]), by_shard)
        tiles = [tile for of_shard in tiles_by_shard for tile in of_shard]
    tiles.sort(key=lambda tile: (tile.labels, tile.split))
    return draw_sheet(tiles, index.classes)


def spread_over_classes(parts: Sequence[Part], samples: int) -> list[tuple[Part, int | None]]:
    """Up to `samples` pairs of a part and the class to show from it; the class is None where samples have none.

    One of each class, as far as there is room, then a second one of each and so on, from as many parts as possible.
    """
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part.label_histogram)
    labels: list[int | None] = [label for label in sorted(counts) if counts[label] > 0]
    if not labels:
        labels = [None]
    if len(labels) > samples:
        labels = [labels[number * len(labels) // samples] for number in range(samples)]
    left: dict[tuple[str, int | None], int] = {}
    for part in parts:
        histogram = part.label_histogram
        held = {label: part.samples if label is None else histogram.get(label, 0) for label in labels}
        left |= {(part.path, label): samples for label, samples in held.items() if samples}
    used: Counter[str] = Counter()
    chosen: list[tuple[Part, int | None]] = []
    by_label = {label: [part for part in parts if (part.path, label) in left] for label in labels}
    while labels and len(chosen) < samples:
        still: list[int | None] = []
        for label in labels:
            candidates = [part for part in by_label[label] if left[part.path, label]]
            if not candidates or len(chosen) == samples:
                continue
            part = min(candidates, key=lambda one: (used[one.path], _tie_break(one.path, label)))
            used[part.path] += 1
            left[part.path, label] -= 1
            chosen.append((part, label))
            still.append(label)
        labels = still
    return chosen


def draw_sheet(tiles: Sequence[Tile], classes: Sequence[str]) -> Sheet:
    """A PNG of the tiles in rows, with the class name and split below each."""
    names = _Captions(classes, {tile.labels[0] for tile in tiles if tile.labels})
    columns = max(min(COLUMNS, len(tiles)), 1)
    rows = max(-(-len(tiles) // columns), 1)
    width, height = _PICTURE[0] + _GAP, _PICTURE[1] + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font: Any = ImageFont.load_default(size=_SIZE)
    if not tiles:
        draw.text((_GAP, _GAP), "no samples", _FAINT, font)
    for number, tile in enumerate(tiles):
        x, y = _GAP + number % columns * width, _GAP + number // columns * height
        draw.rectangle((x, y, x + _PICTURE[0] - 1, y + _PICTURE[1] - 1), _EMPTY)
        if tile.picture is None:
            draw.text((x + 8, y + 8), "cannot be read", _FAINT, font)
        else:
            small = tile.picture.copy()
            small.thumbnail(_PICTURE)
            left, top = (_PICTURE[0] - small.width) // 2, (_PICTURE[1] - small.height) // 2
            sheet.paste(small, (x + left, y + top))
        name = names.written[tile.labels[0]] if tile.labels else [("no class", font)]
        more = f" +{len(tile.labels) - 1}" if len(tile.labels) > 1 else ""
        place, below = float(x), y + _PICTURE[1] + 3 + font.getmetrics()[0]  # the line that all letters stand on
        for text, own in [*_fitted(name, _PICTURE[0] - font.getlength(more), font), (more, font)]:
            draw.text((place, below), text, _INK, own, anchor="ls")
            place += own.getlength(text)
        draw.text((x, y + _PICTURE[1] + 3 + _LINE - 2), tile.split, _FAINT, ImageFont.load_default(size=11))
    sink = io.BytesIO()
    sheet.save(sink, "PNG", optimize=True)
    return Sheet(sink.getvalue(), names.legend)


def middle_frame(store: Store, part: str, row: dict[str, Any]) -> Image.Image:
    """The middle frame of a sample, decoded from its key-frame group's packets up to it.

    Raises UserError, OSError or FFmpegError if it cannot be read.
    """
    middle = row["frames"] // 2
    keys = [number for number, key in enumerate(row["packet_key"]) if key]
    first = max(number for number in keys if number <= middle)
    end = min((number for number in keys if number > middle), default=len(row["packet_key"]))
    times = row["packet_pts"][first:end]
    if times == sorted(times):  # none is shown before one that comes earlier: what comes later is not needed
        end = middle + 1
    codec = av.CodecContext.create(row["codec"], "r")
    codec.extradata = row["extradata"]
    spans = list(zip(row["packet_offset"][first:end], row["packet_size"][first:end], strict=True))
    low, high = min(start for start, _ in spans), max(start + size for start, size in spans)
    data = store.get_range(part, row["offset"] + low, row["offset"] + high)
    frames: list[Any] = []
    for start, size in spans:
        frames += codec.decode(av.Packet(data[start - low : start - low + size]))
    frames += codec.decode(None)
    if not frames:
        raise OSError("no frame decodes")
    picture: Image.Image = frames[min(middle - first, len(frames) - 1)].to_image()
    return picture


def _tiles(store: Store, shard: tuple[str, str], wanted: Sequence[tuple[Part, int | None]]) -> list[Tile]:
    """A tile for each wanted class of a shard's parts, as far as there are samples for them."""
    table = read_record(store, *shard)
    keys, numbers, labels = (table[name].to_pylist() for name in ("key", "part", "labels"))
    order = sorted(range(len(keys)), key=lambda row: str(keys[row]))
    taken: set[int] = set()
    tiles = []
    for part, label in wanted:
        fitting = (row for row in order if numbers[row] == part.part and (label is None or label in labels[row]))
        row = next((row for row in fitting if row not in taken), None)
        if row is None:  # a sample of several classes stands for one of them
            continue
        taken.add(row)
        picture = None
        try:
            picture = middle_frame(store, part.path, table.slice(row, 1).to_pylist()[0])
        except (UserError, OSError, av.error.FFmpegError, ValueError):
            picture = None
        tiles.append(Tile(picture, tuple(labels[row]), part.split))
    return tiles


def _tie_break(path: str, label: int | None) -> bytes:
    return hashlib.sha256(f"{label}:{path}".encode()).digest()


class _Captions:
    """The captions of the classes, in pieces of one font each: Pillow's own, which has ASCII alone, or installed ones.

    Where no font has the letters, the caption is the name without accents, or "class 7" with the name in `legend`.
    """

    def __init__(self, classes: Sequence[str], labels: Iterable[int]) -> None:
        names = {label: " ".join(classes[label].split()) if 0 <= label < len(classes) else "" for label in labels}
        fonts = Fonts(name for name in names.values() if not name.isascii())
        plain = ImageFont.load_default(size=_SIZE)
        self.written: dict[int, Pieces] = {}
        self.legend: dict[str, str] = {}
        for label, name in sorted(names.items()):
            written = None if name.isascii() else fonts.runs(name)
            pieces = written.by_font() if written else []
            simple = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
            if pieces and (_HAS_RAQM or not _is_shaped(name)) and (len(pieces) == 1 or not right_to_left(name)):
                self.written[label] = [(text, ImageFont.truetype(file, _SIZE)) for text, file in pieces]
            elif simple and simple.isascii() and simple.isprintable():
                self.written[label] = [(simple, plain)]
            else:
                self.written[label] = [(f"class {label}", plain)]
                if name:
                    self.legend[f"class {label}"] = name


def _is_shaped(name: str) -> bool:
    """Whether the letters change shape with their neighbours, or run from right to left."""
    return right_to_left(name) or any(unicodedata.category(character) in ("Mc", "Mn") for character in name)


def _fitted(pieces: Pieces, width: float, plain: Any) -> Pieces:
    """The text, cut to the width in pixels with an ellipsis if it is longer."""
    if _length(pieces) <= width:
        return pieces
    shown = [(text[:_LONGEST], font) for text, font in pieces]
    while shown and _length(shown) + plain.getlength("…") > width:
        text, font = shown.pop()
        if len(text) > 1:
            shown.append((text[:-1].rstrip(), font))
    return [*shown, ("…", plain)]


def _length(pieces: Pieces) -> float:
    return float(sum(font.getlength(text) for text, font in pieces))
