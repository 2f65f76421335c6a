"""The contact sheet shows real frames of the right samples, the page shows all figures and takes names as data."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sharding.format import index, record
from sharding.format.index import Index, Part
from sharding.inspect.contact_sheet import Tile, contact_sheet, draw_sheet, middle_frame, spread_over_classes
from sharding.inspect.html import page
from sharding.storage.store import Store, open_store
from tests.support.damaged_stores import sharded
from tests.support.stores import part_of

NAMES = ["<script>alert(1)</script>", "say \"cheese\" & 'smile'", "篮球", "calm"]


class Reader(HTMLParser):
    """The tags and the text of a page; a tag that is closed in the wrong order is an error."""

    VOID = ("meta", "img", "rect", "line", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def summary(**changes: Any) -> dict[str, Any]:
    split = {"samples": 1234567, "videos": 400000, "shards": 7, "bytes": 9.1e12, "frames": 10, "seconds": 7300.0}
    tree: dict[str, Any] = {
        "store": "s3://bucket/store",
        "index": "000003-abcdef",
        "samples": 1234567,
        "videos": 400000,
        "frames": 10,
        "seconds": 7300.0,
        "bytes": 9.1e12,
        "splits": {"train": split},
        "classes": NAMES,
        "label_histogram": {"train": {"0": 7, "1": 5}, "val": {"0": 1}},
        "lengths": [{"from": 0, "to": 1, "samples": 20}, {"from": 1, "to": None, "samples": 3}],
        "concealed": {"frames": 4, "samples": 3, "unknown": 2},
        "failures": {"cut off": 12, "no_video": 1},
        "failure_examples": [
            {"uri": f"a/<b>{number}.mp4", "kind": "cut off", "reason": "too little decodes", "split": "train"}
            for number in range(12)
        ],
        "left_out": {"missing": 31},
        "settings": {"encode": {"crf": 18}, "segments": None, "names": ["</td>", 3]},
        "versions": {"av": ["18.1.0", "17.0"]},
        "generations": [{"number": 0, "kind": "corpus", "videos": 400000}],
    }
    return tree | changes


PNG = draw_sheet([], [])


def test_the_page_says_it_all() -> None:
    text = page(summary(), PNG)
    shown = " ".join(read(text).text)
    for word in (
        "s3://bucket/store", "000003-abcdef", "1,234,567", "400,000", "2 h 1 min", "9.1 TB", *NAMES,
        "2 classes without a sample", "0 to 1 s", "1 s and more", "cut off: 12, the first 5", "a/<b>0.mp4",
        "too little decodes", "missing", "31", "encode.crf", "18", "18.1.0, 17.0", "corpus", "</td>, 3",
        "4 frames (40 %) of 3 samples; not counted in 2 samples",
    ):  # fmt: skip
        assert word in shown, word
    assert "a/<b>5.mp4" not in shown


def test_names_are_data() -> None:
    reader = read(page(summary(store="<img src=x onerror=alert(1)>"), PNG))
    assert "script" not in reader.tags and "b" in reader.tags and reader.tags["img"] == 1
    outside = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert [value[:22] for value in outside if value] == ["data:image/png;base64,"]
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


@given(st.lists(st.text(), min_size=1, max_size=4), st.text(), st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_stays_text(names: list[str], uri: str, kind: str) -> None:
    """However odd the names are, the page has the tags of one with plain names, and can be written as UTF-8."""
    example = {"uri": uri, "kind": kind, "reason": uri, "split": "train"}

    def of(classes: list[str], **odd: Any) -> str:
        return page(summary(classes=classes, label_histogram={"train": {"0": 1}}, **odd), PNG)

    odd = of(names, failures={kind: 1}, failure_examples=[example], versions={uri: kind}, left_out={uri: 2})
    plain_example = example | {"kind": "k", "uri": "u", "reason": "r"}
    plain_names = [f"class {number}" for number in range(len(names))]
    plain = of(plain_names, failures={"k": 1}, failure_examples=[plain_example], versions={"u": "k"}, left_out={"u": 2})
    assert read(odd).tags == read(plain).tags
    odd.encode()


def test_as_many_classes_as_sports_1m_has() -> None:
    """All are named, the largest and smallest twice, the empty ones apart; each split has its share of a bar."""
    classes = [f"sport {number}" for number in range(487)]
    counts = {str(number): 5000 - 10 * number for number in range(480)}
    text = page(summary(classes=classes, label_histogram={"train": counts, "val": {"0": 5000}}), PNG)
    reader = read(text)
    assert reader.tags["rect"] == 480 and reader.tags["details"] == 1
    shown = "\n".join(reader.text)
    assert all(name in shown for name in classes) and "7 classes without a sample" in shown
    assert text.count(">sport 0<") == 2 and text.count(">sport 240<") == 1 and len(text) < 300_000
    assert "width:50.00%" in text and "10,000" in shown


def test_a_store_of_nothing() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("samples", "videos", "frames", "seconds", "bytes"), 0) | {
        name: {} for name in ("splits", "label_histogram", "failures", "left_out", "versions")
    }
    text = page(summary(**nothing, index=None, classes=[], lengths=[], failure_examples=[], generations=[]), PNG)
    assert "no index yet" in text and "no classes" in text and "every listed video" in text


def test_lengths_by_their_bounds() -> None:
    lengths = index.length_ranges({"10": 4, "0.5": 3, "50000": 5})
    shown = " ".join(read(page(summary(lengths=lengths), PNG)).text)
    assert "0.5 to 1 s" in shown and "10 to 20 s" in shown and "50000 s and more" in shown


@given(st.floats(0, 1e6))
def test_a_length_lies_between_the_bounds_of_its_bucket(seconds: float) -> None:
    ((begin, end, samples),) = (one.values() for one in index.length_ranges({index.length_bucket(seconds): 3}))
    assert samples == 3 and begin <= seconds + 1e-6 and (end is None or seconds + 1e-6 < end)
    assert end is None if begin == 50_000 else end <= max(2.5 * begin, 0.1)


def test_the_buckets_follow_each_other_by_length() -> None:
    counts = {f"{bound:g}": 1 for bound in sorted(index.LENGTHS, key=str)}
    found = index.length_ranges(counts)
    assert [one["to"] for one in found] == [*(one["from"] for one in found[1:]), None]
    assert found[0]["from"] == 0 and len(found) == len(counts)


def part(number: int, histogram: dict[int, int], samples: int | None = None) -> Part:
    total = sum(histogram.values()) if samples is None else samples
    return Part("train", f"g0-{number:06d}", 0, f"train/g0-{number:06d}-00.tar", total, 1, "", json.dumps(histogram))


@given(st.lists(st.dictionaries(st.integers(0, 9), st.integers(1, 4)), max_size=12), st.integers(1, 40))
def test_the_sheet_shows_every_class_before_a_second_of_one(histograms: list[dict[int, int]], count: int) -> None:
    parts = [part(number, histogram) for number, histogram in enumerate(histograms)]
    chosen = spread_over_classes(parts, count)
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    assert len(chosen) == min(count, sum(total.values()))
    shown = Counter(label for _, label in chosen)
    assert all(shown[label] <= total[label] for label in shown if label is not None)
    assert all(one.label_histogram[label] > 0 for one, label in chosen if label is not None)
    if len(total) <= count:
        least = {label: min(shown[label], total[label]) for label in total}
        assert all(shown[a] - 1 <= least[b] or least[b] == total[b] for a in total for b in total)
    else:
        assert max(shown.values(), default=1) == 1


def test_the_sheet_takes_from_many_shards() -> None:
    parts = [part(number, {0: 100, 1: 100}) for number in range(30)]
    assert len({one.path for one, _ in spread_over_classes(parts, 20)}) == 20
    assert len(spread_over_classes([part(0, {}, 3), part(1, {}, 9)], 10)) == 10  # without labels


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, pieces: list[Path]) -> Path:
    """A store of two classes, one with a name that Pillow's font cannot write."""
    folder = tmp_path_factory.mktemp("sheet")
    for number, piece in enumerate(pieces):
        target = folder / "corpus" / ("篮球" if number < 3 else "calm") / f"{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece, target)
    store = open_store(str(folder / "store"))
    sharded(folder / "corpus", store)
    index.merge(store)
    return folder / "store"


def rows(store: Store) -> list[tuple[str, dict[str, Any]]]:
    return [
        (part_of(store, (split, job), row["part"]), row)
        for split, job in record.list_records(store)
        for row in record.read_record(store, split, job).to_pylist()
    ]


def test_the_middle_frame_is_the_middle_frame(root: Path) -> None:
    store = open_store(str(root))
    for path, row in rows(store):
        data = store.get_range(path, row["offset"], row["offset"] + row["size"])
        with av.open(io.BytesIO(data)) as container:
            frames = [np.asarray(frame.to_image(), np.int16) for frame in container.decode(video=0)]
        shown = np.asarray(middle_frame(store, path, row), np.int16)
        distances = [np.abs(shown - frame).mean() for frame in frames]
        assert np.argmin(distances) == len(frames) // 2 and min(distances) < 1


def test_a_sheet_of_a_real_store(root: Path, tmp_path: Path) -> None:
    store = open_store(str(root))
    png = contact_sheet(store, index.current_index(store)).png
    sheet = Image.open(io.BytesIO(png))
    assert sheet.format == "PNG" and sheet.size == (6 * 180 + 10, 172 + 10)
    assert png == contact_sheet(store, index.current_index(store)).png
    pictures = [np.asarray(sheet.crop((x, 10, x + 170, 138))) for x in range(10, 1090, 180)]
    assert all(picture.std() > 10 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 6
    smaller = Image.open(io.BytesIO(contact_sheet(store, index.current_index(store), 2).png))
    assert smaller.size == (370, 182)


def test_only_what_is_shown_is_fetched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(root))
    fetched = 0
    real = type(store).get_range

    def watched(self: Store, path: str, start: int, end: int) -> bytes:
        nonlocal fetched
        fetched += end - start
        return real(self, path, start, end)

    monkeypatch.setattr(type(store), "get_range", watched)
    contact_sheet(store, index.current_index(store))
    needed = sum(sum(row["packet_size"][: row["frames"] // 2 + 1]) for _, row in rows(store))
    assert needed == fetched < sum(row["size"] for _, row in rows(store))


def test_a_damaged_sample_is_an_empty_picture(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "store")
    store = open_store(str(tmp_path / "store"))
    path, row = rows(store)[0]
    data = bytearray(store.get(path))
    data[row["offset"] : row["offset"] + row["size"]] = bytes(row["size"])
    store.put(path, bytes(data))
    (Path(store.url) / rows(store)[-1][0]).unlink()
    assert Image.open(io.BytesIO(contact_sheet(store, index.current_index(store)).png)).size == (1090, 182)


@pytest.mark.parametrize("name", ["篮球", "café", "a\nb\0c", "", "x" * 500, "\ud800", "עברית", "<b>"])
def test_names_of_any_letters(name: str) -> None:
    picture = Image.new("RGB", (64, 48), "#336699")
    tiles = [Tile(picture, (0, 1), "train"), Tile(None, (7,), "val"), Tile(picture, (), "train")]
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet(tiles, [name, "other"]).png)).convert("L"))
    assert sheet.shape == (182, 550)
    below = sheet[140:158]
    assert all((below[:, x : x + 170] < 128).any() for x in (10, 190, 370))  # something is written below each
    assert (sheet[:, 180:190] == 255).all()  # and it ends with its picture


def test_the_summary_of_a_store_on_s3(
    root: Path, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, bucket = s3
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    local, remote = open_store(str(root)), open_store(f"s3://{bucket}/sheet-{time.time_ns()}")
    for path in local.list(""):
        remote.put(path, local.get(path))
    current: Index = index.current_index(remote)
    sheet = contact_sheet(remote, current)
    assert sheet == contact_sheet(local, index.current_index(local))
    text = page(summary(classes=current.classes), sheet)
    assert "篮球" in text and len(text) > len(sheet.png)
