"""Labels of lists: what a cell holds, numbers, names in any Unicode form, and what is said of classes."""

from __future__ import annotations

import gzip
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sharding.base.errors import UserError
from sharding.base.settings import load_settings
from sharding.corpora.manifest import CorpusSettings, Manifest, read_manifest
from sharding.storage.store import open_store

TEMPLATE = "Putting something, something and something on the table"
COMPOSED = "café 張 Ünder"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(2000))
    return root


def read(corpus: str | Path, **values: Any) -> Manifest:
    return read_manifest(str(corpus), CorpusSettings(**{"validation": 0.0, **values}))


def of_lines(root: Path, *lines: str, name: str = "list.csv", **values: Any) -> Manifest:
    """A list of these lines, whose videos 0.mp4, 1.mp4, … are there."""
    make(root, *[f"{n}.mp4" for n in range(20)])
    (root / name).write_bytes("".join(line + "\n" for line in lines).encode())
    return read(root / name, **values)


def found(manifest: Manifest) -> dict[str, list[str]]:
    """uri → class names of every video."""
    return {v.uri: [manifest.classes[n] for n in v.labels] for v in manifest.videos()}


def notes(manifest: Manifest) -> str:
    return "\n".join(manifest.notes)


@pytest.mark.parametrize("separator", [",", "\t", ";", ", ", "  ;"])
def test_a_quoted_cell_is_one_label(tmp_path: Path, separator: str) -> None:
    lines = [separator.join(cells) for cells in (("uri", "label"), ("0.mp4", f'"{TEMPLATE}"'), ("1.mp4", '"a; b|c"'))]
    manifest = of_lines(tmp_path, *lines)
    assert found(manifest) == {"0.mp4": [TEMPLATE], "1.mp4": ["a; b|c"]} and len(manifest.classes) == 2


@pytest.mark.parametrize(
    "label", ["a|b", "a;b", "a/b", "[Something] colliding with [something]", "[walk]", "it's a [b]"]
)
def test_a_cell_without_quotes_is_one_label(tmp_path: Path, label: str) -> None:
    assert found(of_lines(tmp_path, "uri,label", f"0.mp4,{label}")) == {"0.mp4": [label]}


@pytest.mark.parametrize("separator", [",", ";", "|", " ", "::", "、"])
def test_several_labels_where_the_user_says_what_is_between_them(tmp_path: Path, separator: str) -> None:
    cell = f'"walk{separator}run{separator}{separator} walk"'
    manifest = of_lines(tmp_path, "uri,label", f"0.mp4,{cell}", "1.mp4,walk", labels_separator=separator)
    assert found(manifest) == {"0.mp4": ["run", "walk"], "1.mp4": ["walk"]}
    assert "look like several" not in notes(manifest)


def test_several_labels_in_lists_of_types(tmp_path: Path) -> None:
    make(tmp_path, "0.mp4", "1.mp4", "2.mp4")
    rows: list[dict[str, Any]] = [{"uri": "0.mp4", "label": ["a, b", "c"]}, {"uri": "1.mp4", "label": ["c"]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    assert found(read(tmp_path / "list.parquet", labels_separator=",")) == {"0.mp4": ["a, b", "c"], "1.mp4": ["c"]}
    lines = ['{"uri": "0.mp4", "label": "a, b"}', '{"uri": "1.mp4", "label": ["a, b", "c"]}']
    assert found(of_lines(tmp_path, *lines, name="l.jsonl")) == {"0.mp4": ["a, b"], "1.mp4": ["a, b", "c"]}
    cut = of_lines(tmp_path, *lines, name="l.jsonl", labels_separator=",")
    assert found(cut) == {"0.mp4": ["a", "b"], "1.mp4": ["a, b", "c"]}
    cell = of_lines(tmp_path, "uri,label", '0.mp4,"[""a, b"", ""c""]"', '1.mp4,"[3, 1.0]"', "2.mp4,\"['a', 'c']\"")
    assert found(cell) == {"0.mp4": ["a, b", "c"], "1.mp4": ["1", "3"]}
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
    assert found(manifest)["2.mp4"] == ["run|jump"]
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
    assert found(named) == {"0.mp4": ["c"], "1.mp4": ["a"]} and named.left_out == {"label_out_of_range": 1}


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
        assert found(cells) == {"0.mp4": [COMPOSED]}
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


PATHS = [
    (COMPOSED, DECOMPOSED),
    (DECOMPOSED, COMPOSED),
    (f"{COMPOSED}/{COMPOSED}", f"{DECOMPOSED}/{COMPOSED}"),
    (f"{DECOMPOSED}/{COMPOSED}/x", f"{COMPOSED}/{DECOMPOSED}/x"),
    (f"é{DECOMPOSED}", f"{unicodedata.normalize('NFD', 'é')}{COMPOSED}"),
]


@pytest.mark.parametrize(("listed", "there"), PATHS)
def test_a_list_finds_files_in_another_unicode_form(tmp_path: Path, listed: str, there: str) -> None:
    make(tmp_path, f"{there}.mp4")
    names = [f"{listed}.mp4", f" {listed}.mp4  ", f"{tmp_path}/{listed}.mp4", f"file://{tmp_path}/{listed}.mp4"]
    for name in names:
        assert found(of_lines(tmp_path, "uri,label", f"{name},x")) == {f"{there}.mp4": ["x"]}
    make(tmp_path, f"{listed}.mp4")
    assert found(of_lines(tmp_path, "uri,label", f"{listed}.mp4,x")) == {f"{listed}.mp4": ["x"]}
    url = f"memory://{tmp_path.name}"
    open_store(url).put(f"{there}.mp4", bytes(2000))
    for name in (f"{listed}.mp4", f" {listed}.mp4", f"{url}/{listed}.mp4 "):
        assert found(of_lines(tmp_path, "uri,label", f"{name},x", media=url)) == {f"{there}.mp4": ["x"]}


def test_one_file_in_two_forms_and_below_a_root_in_another(tmp_path: Path) -> None:
    make(tmp_path / DECOMPOSED, f"{DECOMPOSED}.mp4")
    lines = ["uri,label,split", f"{tmp_path}/{COMPOSED}/{COMPOSED}.mp4,x,train", f"{DECOMPOSED}.mp4,y,train"]
    manifest = of_lines(tmp_path, *lines, f"{COMPOSED}.mp4,x,val", media=str(tmp_path / DECOMPOSED))
    assert found(manifest) == {f"{DECOMPOSED}.mp4": ["x", "y"]}
    assert manifest.left_out == {"duplicate": 1, "leak": 1}


def test_blanks_around_paths_are_none_unless_the_file_has_them(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", " b.mp4", "c.mp4", "c.mp4 ", "d e.mp4", "absolute.mp4")
    lines = [
        " a.mp4 ",
        " b.mp4",
        "c.mp4 ",
        "\u3000d e.mp4\t",
        f"  {tmp_path}/absolute.mp4 ",
        " ../out.mp4",
        " gone.mp4 ",
    ]
    manifest = of_lines(tmp_path, "uri,label", *[f"{name},x" for name in lines])
    assert set(found(manifest)) == {"a.mp4", " b.mp4", "c.mp4 ", "d e.mp4", "absolute.mp4"}
    assert manifest.left_out == {"missing": 1, "outside_roots": 1}
    json = ['{"uri": " a.mp4 ", "label": "x"}', '{"uri": "c.mp4 ", "label": "x"}', '{"uri": "c.mp4", "label": "x"}']
    assert set(found(of_lines(tmp_path, *json, name="l.jsonl"))) == {"a.mp4", "c.mp4 ", "c.mp4"}


def test_blanks_around_addresses_and_keys(
    tmp_path: Path, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3[0].items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3[1]}/blanks"
    for key in ("a.mp4", " b.mp4", "c.mp4", "d.mp4", "d.mp4 ", f"{DECOMPOSED}.mp4"):
        open_store(url).put(key, bytes(2000))
    lines = [" a.mp4", " b.mp4", f"  {url}/c.mp4 ", "d.mp4 ", " gone.mp4", f" s3://{s3[1]}/elsewhere/x.mp4"]
    lines.append(f"{COMPOSED}.mp4")
    manifest = of_lines(tmp_path, "uri,label", *[f"{name},x" for name in lines], media=url)
    assert set(found(manifest)) == {"a.mp4", " b.mp4", "c.mp4", "d.mp4 ", f"{DECOMPOSED}.mp4"}
    assert manifest.left_out == {"missing": 1, "outside_roots": 1}


LIST = "uri,label,split\n{}.mp4,{},train\n1.mp4,x,train\n"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp850"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_encodings_are_refused_and_read_where_they_are_named(tmp_path: Path, encoding: str, packed: bool) -> None:
    make(tmp_path, "été.mp4", "1.mp4")
    path = tmp_path / ("list.csv.gz" if packed else "list.csv")
    data = LIST.format("été", "naïve").encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=r"UTF(.|\n)*list.csv(.|\n)*save it as UTF-8(.|\n)*encoding="):
        read(path)
    assert found(read(path, encoding=encoding)) == {"été.mp4": ["naïve"], "1.mp4": ["x"]}


def test_the_encoding_goes_for_names_of_classes_and_split_files(tmp_path: Path) -> None:
    make(tmp_path, "0.mp4", "1.mp4")
    (tmp_path / "list.csv").write_bytes("uri,label\n0.mp4,café\n1.mp4,1\n".encode("cp1252"))
    names = tmp_path / "names.txt"
    names.write_bytes("café\nnoël\n".encode("cp1252"))
    assert read(tmp_path / "list.csv", labels=str(names), encoding="cp1252").classes == ("café", "noël")
    with pytest.raises(UserError, match=r"not UTF-8(.|\n)*names.txt, line 1"):
        read(tmp_path / "list.csv", labels=str(names))
    for encoding in ("utf-16", "shift_jis"):
        home = make(tmp_path / encoding, "走る/v_走る_g01_c01.avi", "跳ぶ/v_跳ぶ_g01_c01.avi")
        (home / "classInd.txt").write_text("1 走る\n2 跳ぶ\n", encoding=encoding)
        (home / "trainlist01.txt").write_text("走る/v_走る_g01_c01.avi 1\n", encoding=encoding)
        (home / "testlist01.txt").write_text("跳ぶ/v_跳ぶ_g01_c01.avi\n", encoding=encoding)
        manifest = read(home, encoding=encoding)
        assert manifest.classes == ("走る", "跳ぶ") and manifest.counts == {"train": 1, "val": 1}
        with pytest.raises(UserError, match="UTF"):
            read(home)


def test_lists_by_their_names_are_not_passed_over_for_their_encoding(tmp_path: Path) -> None:
    make(tmp_path, "clips/0.mp4")
    for encoding in ("utf-16", "latin-1", "utf-16-le"):
        for name in ("train.csv", "val.csv"):
            (tmp_path / name).write_bytes("uri,label\nclips/0.mp4,é\n".encode(encoding))
        with pytest.raises(UserError, match="UTF"):
            read(tmp_path)
        assert read(tmp_path, encoding=encoding).classes == ("é",)


def test_an_encoding_that_is_none_or_another(tmp_path: Path) -> None:
    for name in ("latin-9000", "hex", "", "a\0b"):
        with pytest.raises(ValueError, match="no encoding is called so"):
            CorpusSettings(encoding=name)
    for encoding in ("utf-16", "ascii"):
        with pytest.raises(UserError, match=f"not in {encoding}"):
            of_lines(tmp_path, "uri,label", "0.mp4,é", encoding=encoding)
    late = ["uri,label", *["0.mp4,x"] * 3000]
    make(tmp_path, "0.mp4")
    (tmp_path / "list.csv").write_bytes("\n".join(late).encode() + b"\n0.mp4,\xe9\n")
    with pytest.raises(UserError, match="line 3002"):
        read(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.json", "train_partition.txt"])
def test_a_mark_of_byte_order_is_no_part_of_a_text(tmp_path: Path, name: str) -> None:
    make(tmp_path, "AAAAAAAAAA1.mp4")
    line = {"list.csv": "uri,label\nAAAAAAAAAA1.mp4,0\n", "train_partition.txt": "https://youtu.be/AAAAAAAAAA1 0\n"}
    text = line.get(name, '{"uri": "AAAAAAAAAA1.mp4", "label": 0}\n')
    for encoding in (None, "utf-8", "utf-8-sig", "latin-1"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert found(read(tmp_path / name, encoding=encoding)) == {"AAAAAAAAAA1.mp4": ["0"]}
    (tmp_path / name).write_bytes(text.encode("utf-16"))
    assert found(read(tmp_path / name, encoding="utf-16")) == {"AAAAAAAAAA1.mp4": ["0"]}
    (tmp_path / name).write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    assert found(read(tmp_path / name, encoding="utf-16-le")) == {"AAAAAAAAAA1.mp4": ["0"]}


def test_split_files_of_windows(tmp_path: Path) -> None:
    make(tmp_path / "ucf", "A/v_A_g01_c01.avi", "B/v_B_g01_c01.avi")
    make(tmp_path / "hmdb", "a/x.avi", "b/y.avi")
    for name, text in (
        ("ucf/classInd.txt", "1 A\r\n2 B\r\n"), ("ucf/trainlist01.txt", "A/v_A_g01_c01.avi 1\r\n"),
        ("ucf/testlist01.txt", "B/v_B_g01_c01.avi\r\n"), ("hmdb/a_test_split1.txt", "x.avi 1\r\n"),
        ("hmdb/b_test_split1.txt", "y.avi 2\r\n"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    for folder, classes in (("ucf", ("A", "B")), ("hmdb", ("a", "b"))):
        manifest = read(tmp_path / folder)
        assert manifest.kind.startswith(folder) and manifest.classes == classes
        assert manifest.counts == {"train": 1, "val": 1} and manifest.left_out == {}


def test_a_settings_file_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("\ufefffold: 3\r\n", "\ufeff# été\nfold: 3\n"):
        path.write_text(text, encoding="utf-8")
        assert load_settings(CorpusSettings, str(path)).fold == 3
    path.write_text("# été\nfold: 3\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"settings file is in UTF-16(.|\n)*config.yaml(.|\n)*save it as UTF-8"):
        load_settings(CorpusSettings, str(path))
    path.write_text("fold: 3\n# été\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"not UTF-8(.|\n)*config.yaml, line 2"):
        load_settings(CorpusSettings, str(path))
