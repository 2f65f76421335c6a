"""Labels of lists: what a cell holds, numbers, names in any Unicode form, and the notes on classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sharding.base.errors import UserError
from sharding.base.settings import load_settings
from sharding.corpora.manifest import CorpusSettings, read_manifest
from tests.support.corpora import COMPOSED, DECOMPOSED, labels_by_uri, make, notes, of_lines, read

TEMPLATE = "Putting something, something and something on the table"


@pytest.mark.parametrize("separator", [",", "\t", ";", ", ", "  ;"])
def test_a_quoted_cell_is_one_label(tmp_path: Path, separator: str) -> None:
    lines = [separator.join(cells) for cells in (("uri", "label"), ("0.mp4", f'"{TEMPLATE}"'), ("1.mp4", '"a; b|c"'))]
    manifest = of_lines(tmp_path, *lines)
    assert labels_by_uri(manifest) == {"0.mp4": [TEMPLATE], "1.mp4": ["a; b|c"]} and len(manifest.classes) == 2


@pytest.mark.parametrize(
    "label", ["a|b", "a;b", "a/b", "[Something] colliding with [something]", "[walk]", "it's a [b]"]
)
def test_a_cell_without_quotes_is_one_label(tmp_path: Path, label: str) -> None:
    assert labels_by_uri(of_lines(tmp_path, "uri,label", f"0.mp4,{label}")) == {"0.mp4": [label]}


@pytest.mark.parametrize("separator", [",", ";", "|", " ", "::", "、"])
def test_several_labels_where_the_user_says_what_is_between_them(tmp_path: Path, separator: str) -> None:
    cell = f'"walk{separator}run{separator}{separator} walk"'
    manifest = of_lines(tmp_path, "uri,label", f"0.mp4,{cell}", "1.mp4,walk", labels_separator=separator)
    assert labels_by_uri(manifest) == {"0.mp4": ["run", "walk"], "1.mp4": ["walk"]}
    assert "look like several" not in notes(manifest)


def test_several_labels_in_lists_of_types(tmp_path: Path) -> None:
    make(tmp_path, "0.mp4", "1.mp4", "2.mp4")
    rows: list[dict[str, Any]] = [{"uri": "0.mp4", "label": ["a, b", "c"]}, {"uri": "1.mp4", "label": ["c"]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    assert labels_by_uri(read(tmp_path / "list.parquet", labels_separator=",")) == {
        "0.mp4": ["a, b", "c"],
        "1.mp4": ["c"],
    }
    lines = ['{"uri": "0.mp4", "label": "a, b"}', '{"uri": "1.mp4", "label": ["a, b", "c"]}']
    assert labels_by_uri(of_lines(tmp_path, *lines, name="l.jsonl")) == {"0.mp4": ["a, b"], "1.mp4": ["a, b", "c"]}
    cut = of_lines(tmp_path, *lines, name="l.jsonl", labels_separator=",")
    assert labels_by_uri(cut) == {"0.mp4": ["a", "b"], "1.mp4": ["a, b", "c"]}
    cell = of_lines(tmp_path, "uri,label", '0.mp4,"[""a, b"", ""c""]"', '1.mp4,"[3, 1.0]"', "2.mp4,\"['a', 'c']\"")
    assert labels_by_uri(cell) == {"0.mp4": ["a, b", "c"], "1.mp4": ["1", "3"]}
    assert cell.left_out == {"malformed": 1} and "not a JSON list" in next(iter(cell.refusals()))["reason"]


def test_a_separator_where_there_are_no_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cells of tables(.|\n)*kind folder"):
        read(make(tmp_path, "x/a.mp4"), labels_separator=",")


@pytest.mark.parametrize("mark", [",", ";", "|", ">", "#", "&", "*", "-", ":"])
def test_a_separator_needs_no_quotes_on_the_command_line(mark: str) -> None:
    assert load_settings(CorpusSettings, None, [f"labels_separator={mark}"]).labels_separator == mark


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(UserError, match="put it in quotes"):
        load_settings(CorpusSettings, None, ['labels_separator=""'])


def test_labels_that_look_like_several_are_remarked(tmp_path: Path) -> None:
    manifest = of_lines(tmp_path, "uri,label", "0.mp4,run", "1.mp4,jump", "2.mp4,run|jump", f'3.mp4,"{TEMPLATE}"')
    assert labels_by_uri(manifest)["2.mp4"] == ["run|jump"]
    assert "'run|jump' are a class each" in notes(manifest) and "labels_separator='|'" in notes(manifest)
    numbers = of_lines(tmp_path, "uri,label", "0.mp4,0", '1.mp4,"0,2"')
    assert "'0,2'" in notes(numbers) and "labels_separator=','" in notes(numbers)
    named = tmp_path / "names.txt"
    named.write_text("run\njump\n")
    known = of_lines(tmp_path, "uri,label", "0.mp4,run", "1.mp4,jump;run", labels=str(named))
    assert known.left_out == {"label_out_of_range": 1} and "labels_separator=';'" in notes(known)
    plain = of_lines(tmp_path, "uri,label", f'0.mp4,"{TEMPLATE}"', "1.mp4,push; pull", "2.mp4,push")
    assert "labels_separator" not in notes(plain)


@pytest.mark.parametrize("form", ["{}.0", "{}.", "{}.000000", "{}.000000000000000000e+00", "{}", "{}e0", " {}.0 "])
def test_whole_floats_are_indices_as_in_parquet(tmp_path: Path, form: str) -> None:
    lines = [f"{n}.mp4,{form.format(n)},train" for n in range(13)] + ["13.mp4,,val"]
    manifest = of_lines(tmp_path, "uri,label,split", *lines)
    assert manifest.classes == tuple(map(str, range(13)))
    assert {v.uri: v.labels for v in manifest.videos()} == {f"{n}.mp4": (n,) for n in range(13)}
    labels = [float(n) for n in range(13)] + [None]
    table = pa.table({"uri": [f"{n}.mp4" for n in range(14)], "label": labels, "split": ["train"] * 13 + ["val"]})
    parquet.write_table(table, tmp_path / "list.parquet")
    same = read(tmp_path / "list.parquet")
    assert list(same.videos()) == list(manifest.videos()) and same.left_out == manifest.left_out == {"unlabelled": 1}


def test_a_float_that_is_missing_and_floats_that_are_names(tmp_path: Path) -> None:
    manifest = of_lines(tmp_path, "uri,label", "0.mp4,0.0", "1.mp4,1.0", "2.mp4,NaN")
    assert manifest.classes == ("0", "1") and manifest.left_out == {"label_out_of_range": 1}
    assert of_lines(tmp_path, "uri,label", "0.mp4,0.5", "1.mp4,1.0").classes == ("0.5", "1.0")
    assert of_lines(tmp_path, "uri,label", "0.mp4,nan", "1.mp4,bread").classes == ("bread", "nan")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    named = of_lines(tmp_path, "uri,label", "0.mp4,2.0", "1.mp4,0.0", "2.mp4,3.0", labels=str(names))
    assert labels_by_uri(named) == {"0.mp4": ["c"], "1.mp4": ["a"]} and named.left_out == {"label_out_of_range": 1}


def test_one_label_that_makes_names_of_numbers_is_remarked(tmp_path: Path) -> None:
    for odd in ("label", "2.5", '"1,0"'):  # as where two lists were put together with their headers
        manifest = of_lines(tmp_path, "uri,label", "0.mp4,0", "1.mp4,10", f"2.mp4,{odd}")
        name = odd.strip('"')
        assert set(manifest.classes) == {"0", "10", name}
        assert f"names, not as indices, because not all are whole numbers: {name}" in notes(manifest)
    for lines in (["0.mp4,0", "1.mp4,1"], ["0.mp4,a", "1.mp4,b"], ["0.mp4,0.0", "1.mp4,nan"]):
        assert "not as indices" not in notes(of_lines(tmp_path, "uri,label", *lines))


def test_labels_that_count_from_one_are_remarked(tmp_path: Path) -> None:
    manifest = of_lines(tmp_path, "uri,label", *[f"{n}.mp4,{n}" for n in range(1, 5)])
    assert manifest.classes == ("0", "1", "2", "3", "4")
    assert "count from 0, and the lowest listed is 1" in notes(manifest)
    assert "1 of 5 classes have no video: 0" in notes(manifest)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    named = of_lines(tmp_path, "uri,label", *[f"{n}.mp4,{n}" for n in range(1, 4)], labels=str(names))
    assert named.left_out == {"label_out_of_range": 1} and "the lowest listed is 1" in notes(named)
    assert "1 of 3 classes have no video: a" in notes(named)
    for first in (1, -1):  # with names, a label past the last shows that they count from 1
        some = of_lines(tmp_path, "uri,label", f"0.mp4,{first}", "1.mp4,2", labels=str(names))
        assert "count from" not in notes(some) and "classes have no video: a" in notes(some)
    zero = of_lines(tmp_path, "uri,label", "0.mp4,0", "1.mp4,3")
    assert "count from" not in notes(zero) and "2 of 4 classes have no video: 1, 2" in notes(zero)
    assert not any("class" in note for note in of_lines(tmp_path, "uri,label", "0.mp4,0", "1.mp4,1").notes)


def test_classes_without_videos_or_in_validation_alone_are_remarked(tmp_path: Path) -> None:
    manifest = of_lines(tmp_path, "uri,label,split", "0.mp4,a,train", "1.mp4,b,val", "gone.mp4,c,train")
    assert "1 of 3 classes have no video: c" in notes(manifest)
    assert "1 of 3 classes have videos in validation alone, none to train on: b" in notes(manifest)
    folders = read(make(tmp_path / "folders", "train/x/a.mp4", "val/x/b.mp4", *[f"val/y{n}/c.mp4" for n in range(5)]))
    assert "5 of 6 classes have videos in validation alone, none to train on: y0, y1, y2, …" in notes(folders)
    alone = read(make(tmp_path / "alone", "val/x/b.mp4", "val/y/c.mp4"))
    assert "no video to train on" in notes(alone) and "validation alone" not in notes(alone)
    there = read_manifest(str(tmp_path / "list.csv"), CorpusSettings(validation=0), classes=("old", "b"))
    assert there.classes == ("old", "b", "a", "c") and "1 of 3 classes have no video: c" in notes(there)


def test_folders_and_lists_name_classes_in_one_form(tmp_path: Path) -> None:
    folders = read(make(tmp_path / "folders", f"train/{COMPOSED}/a.mp4", f"val/{DECOMPOSED} /b.mp4"))
    assert folders.classes == (COMPOSED,) and folders.counts == {"train": 1, "val": 1}
    assert read(make(tmp_path / "blank", " /a.mp4")).classes == (" ",)
    lists = of_lines(tmp_path, "uri,label", f"0.mp4,{COMPOSED}", f"1.mp4, {DECOMPOSED} ", "2.mp4,x")
    assert lists.classes == (COMPOSED, "x")
    names = tmp_path / "names.txt"
    for written, listed in ((COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)):
        names.write_text(f"\ufeff{written}\r\nother\r\n")
        named = of_lines(tmp_path, "uri,label", f"0.mp4,{listed}", "1.mp4,1", labels=str(names))
        assert named.classes == (COMPOSED, "other") and {v.labels for v in named.videos()} == {(0,), (1,)}
        cells = of_lines(tmp_path, "uri,label", f"0.mp4,{listed}", labels=str(names), labels_separator=" ")
        assert labels_by_uri(cells) == {"0.mp4": [COMPOSED]}
    names.write_text(f"{COMPOSED}\n{DECOMPOSED}\n")
    with pytest.raises(UserError, match="twice, first in line 1"):
        read(tmp_path / "list.csv", labels=str(names))
    later = read_manifest(str(tmp_path / "list.csv"), CorpusSettings(validation=0), classes=("x", COMPOSED))
    assert later.classes == ("x", COMPOSED)


def test_split_lists_name_classes_in_one_form(tmp_path: Path) -> None:
    make(tmp_path / "hmdb51", f"{DECOMPOSED}/a.avi", f"{COMPOSED}/{DECOMPOSED}.avi", "run/r.avi")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / f"{COMPOSED}_test_split1.txt").write_text(f"a.avi 1\n{COMPOSED}.avi 2\n")
    (tmp_path / "splits" / "run_test_split1.txt").write_text("r.avi 1\n")
    manifest = read(tmp_path / "splits")
    assert manifest.classes == (COMPOSED, "run") and manifest.left_out == {}
    assert manifest.counts == {"train": 2, "val": 1}
