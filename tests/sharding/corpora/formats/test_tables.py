"""Tables of videos: CSV, JSON and Parquet, what they may say and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sharding.base.errors import UserError
from sharding.corpora.formats import list_file
from sharding.corpora.manifest import CorpusSettings, read_manifest
from tests.support.corpora import labels_by_uri, make, read, refused, write


def test_a_csv_with_every_column(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "deep/b, c.mp4", "d.mp4")
    text = (
        'uri,label,split,start,end\na.mp4,run;jump,train,1.5,3\n"deep/b, c.mp4",run,val,,\nd.mp4,"[""jump""]",test,2,\n'
    )
    manifest = read(write(tmp_path / "list.csv", text), labels_separator=";")
    assert manifest.classes == ("jump", "run") and manifest.root == str(tmp_path) and manifest.kind == "csv"
    videos = {v.uri: (v.labels, v.split, v.start, v.end, v.bytes) for v in manifest.videos()}
    assert videos == {
        "a.mp4": ((0, 1), "train", 1.5, 3.0, 2000),
        "deep/b, c.mp4": ((1,), "val", None, None, 2000),
    }
    assert manifest.left_out == {"test": 1}


@pytest.mark.parametrize(
    "header", ["path,labels", "video\tlabel", "FileName;Label", "\ufefffile,LABELS", " url , class "]
)
def test_columns_have_several_names_and_separators(tmp_path: Path, header: str) -> None:
    make(tmp_path, "a.mp4", "b.mp4")
    separator = next(letter for letter in "\t;," if letter in header)
    text = f"{header}\r\na.mp4{separator}x\r\n\r\nb.mp4{separator}y\r\n"
    assert labels_by_uri(read(write(tmp_path / "list.csv", text))) == {"a.mp4": ["x"], "b.mp4": ["y"]}


def test_a_csv_without_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column for uri(.|\n)*columns' names as the first line"):
        read(write(tmp_path / "list.csv", "a.mp4,run\nb.mp4,jump\n"))
    with pytest.raises(UserError, match="no column for labels"):
        read(write(tmp_path / "list.csv", "uri,split\na.mp4,train\n"))
    with pytest.raises(UserError, match="the list is empty"):
        read(write(tmp_path / "list.csv", ""))
    with pytest.raises(UserError, match="begins with an empty line"):
        read(write(tmp_path / "list.csv", "\nuri,label\na.mp4,run\n"))
    with pytest.raises(UserError, match="UTF-16"):
        (tmp_path / "list.csv").write_text("uri,label\n", encoding="utf-16")
        read(tmp_path / "list.csv")


def test_every_row_that_is_not_planned_is_told(tmp_path: Path) -> None:
    make(tmp_path / "media", *[f"{n}.mp4" for n in range(9)])
    make(tmp_path, "other/x.mp4", "secret.mp4")
    lines = [
        "uri,labels,split,start,end",
        "0.mp4,run,train,,",
        "1.mp4,,train,,",
        "2.mp4,run,train,5,5",
        "3.mp4,run,train,-1,2",
        "4.mp4,run,train,soon,2",
        "5.mp4,run,holdout,,",
        "gone.mp4,run,train,,",
        "../secret.mp4,run,train,,",
        f"{tmp_path}/secret.mp4,run,train,,",
        "https://user:pw@example.org/v.mp4?X-Amz-Signature=abc,run,train,,",
        f"{tmp_path}/other/x.mp4,jump,train,,",
        f"{tmp_path}/media/../media/6.mp4,run,train,,",
        "./0.mp4,jump,train,,",
        "6.mp4,run,val,,",
        ",run,train,,",
        "7.mp4,run,val,0,inf",
    ]
    corpus = write(tmp_path / "list.csv", "\n".join(lines) + "\n")
    manifest = read(corpus, media=str(tmp_path / "media"), roots=(str(tmp_path / "other"),))
    assert labels_by_uri(manifest) == {"0.mp4": ["jump", "run"], "6.mp4": ["run"], f"{tmp_path}/other/x.mp4": ["jump"]}
    assert manifest.root == str(tmp_path / "media")
    assert refused(manifest) == {
        ("1.mp4", "unlabelled", "line 3"),
        ("2.mp4", "malformed", "line 4"),
        ("3.mp4", "malformed", "line 5"),
        ("4.mp4", "malformed", "line 6"),
        ("5.mp4", "malformed", "line 7"),
        ("gone.mp4", "missing", "line 8"),
        ("../secret.mp4", "outside_roots", "line 9"),
        (f"{tmp_path}/secret.mp4", "outside_roots", "line 10"),
        ("https://example.org/v.mp4?…", "outside_roots", "line 11"),
        ("0.mp4", "duplicate", "line 14"),
        ("6.mp4", "leak", "line 15"),
        ("", "malformed", "line 16"),
        ("7.mp4", "malformed", "line 17"),
    }
    kinds = {"unlabelled": 1, "malformed": 6, "missing": 1, "outside_roots": 3, "duplicate": 1, "leak": 1}
    assert manifest.left_out == kinds
    notes = "\n".join(manifest.notes)
    assert all(word in notes for word in ("left out 6 lines", "gone.mp4", "line 8", "listed for training as well"))
    assert "pw" not in notes + json.dumps(list(manifest.refusals())) and "abc" not in notes


def test_nothing_left_is_an_error_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 3 listed: 2 missing, 1 unlabelled(.|\n)*line 2(.|\n)*media="):
        read(write(tmp_path / "list.csv", "uri,label\na.mp4,x\nb.mp4,x\nc.mp4,\n"))


def test_media_that_are_not_there(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    corpus = write(tmp_path / "list.csv", "uri,label\na.mp4,x\n")
    with pytest.raises(UserError, match="no such media folder"):
        read(corpus, media=str(tmp_path / "none"))
    with pytest.raises(UserError, match="media is a file"):
        read(corpus, media=str(tmp_path / "a.mp4"))


def test_labels_are_indices_if_all_are_numbers_and_names_otherwise(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4")
    indices = read(write(tmp_path / "list.csv", 'uri,label\na.mp4,"3,1"\nb.mp4,0\n'), labels_separator=",")
    assert indices.classes == ("0", "1", "2", "3")
    assert {v.uri: v.labels for v in indices.videos()} == {"a.mp4": (1, 3), "b.mp4": (0,)}
    assert read(write(tmp_path / "list.csv", "uri,label\na.mp4,3\nb.mp4,x\n")).classes == ("3", "x")
    huge = read(write(tmp_path / "list.csv", "uri,label\na.mp4,1\nb.mp4,999999999\n"))
    assert huge.classes == ("0", "1") and huge.left_out == {"label_out_of_range": 1}


def test_a_file_of_class_names(tmp_path: Path) -> None:
    make(tmp_path, *[f"{n}.mp4" for n in range(6)])
    labels = write(tmp_path / "names.txt", "run\njump, high\nswim\n")
    lines = ["uri,label", "0.mp4,0", '1.mp4,"jump, high"', '2.mp4,"swim,run"', "3.mp4,3", "4.mp4,fly", '5.mp4,"2,-1"']
    manifest = read(write(tmp_path / "list.csv", "\n".join(lines)), labels=labels, labels_separator=",")
    assert manifest.classes == ("run", "jump, high", "swim")
    assert {v.uri: v.labels for v in manifest.videos()} == {
        "0.mp4": (0,), "1.mp4": (1,), "2.mp4": (0, 2), "5.mp4": (2,)
    }  # fmt: skip
    out = {(name, line) for name, kind, line in refused(manifest) if kind == "label_out_of_range"}
    assert out == {("3.mp4", "line 5"), ("4.mp4", "line 6"), ("5.mp4", "line 7")}
    for text, match in (("a\nb\na\n", "twice, first in line 1"), ("a\n\nb", "empty"), ("\n", "empty")):
        with pytest.raises(UserError, match=match):
            read(tmp_path / "list.csv", labels=write(tmp_path / "bad.txt", text))
    with pytest.raises(UserError, match="no such file of class names"):
        read(tmp_path / "list.csv", labels=str(tmp_path / "none.txt"))


def test_classes_that_are_there_keep_their_indices(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    corpus = write(tmp_path / "list.csv", "uri,label\na.mp4,ant\nb.mp4,zebra\nc.mp4,cow\n")
    manifest = read_manifest(corpus, CorpusSettings(), classes=("zebra", "dog"))
    assert manifest.classes == ("zebra", "dog", "ant", "cow")
    assert labels_by_uri(manifest) == {"a.mp4": ["ant"], "b.mp4": ["zebra"], "c.mp4": ["cow"]}


@pytest.mark.parametrize("name", ["list.jsonl", "list.json", "list.jsonl.gz", "list.parquet"])
def test_json_and_parquet_say_the_same_as_a_csv(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d;e.mp4")
    rows = [
        {"uri": "a.mp4", "labels": ["run", "jump"], "split": "train", "start": 1.5, "end": 3.0},
        {"uri": "b.mp4", "labels": ["run"], "split": "val", "start": None, "end": None},
        {"uri": "c.mp4", "labels": None, "split": "train", "start": None, "end": None},
        {"uri": "d;e.mp4", "labels": ["jump; high"], "split": None, "start": 0.0, "end": None},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif name == "list.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    manifest = read(path)
    assert manifest.classes == ("jump", "jump; high", "run")
    assert {v.uri: (v.labels, v.split, v.start, v.end) for v in manifest.videos()} == {
        "a.mp4": ((0, 2), "train", 1.5, 3.0),
        "b.mp4": ((2,), "val", None, None),
        "d;e.mp4": ((1,), "train", 0.0, None),
    }
    unit = {"parquet": "row", "json": "entry"}.get(name.rpartition(".")[2], "line")
    assert refused(manifest) == {("c.mp4", "unlabelled", f"{unit} 3")}


def test_parquet_of_integers_and_of_no_parquet(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4")
    parquet.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "label": [2, 0]}), tmp_path / "list.parquet")
    assert {v.uri: v.labels for v in read(tmp_path / "list.parquet").videos()} == {"a.mp4": (2,), "b.mp4": (0,)}
    with pytest.raises(UserError, match="cannot be read"):
        read(write(tmp_path / "list.parquet", "PAR1 it is not"))
    parquet.write_table(pa.table({"id": [1]}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match="no column for uri"):
        read(tmp_path / "list.parquet")


def test_lists_of_json_are_called_by_their_split(tmp_path: Path) -> None:
    make(tmp_path, *[f"{n}.mp4" for n in range(10)])
    entries = [{"uri": f"{n}.mp4", "label": "run"} for n in range(10)]
    entries[0]["split"] = "val"
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"train": entries[:5], "Validation": entries[5:]}))
    assert {video.uri for video in read(path).videos() if video.split == "val"} == {
        "0.mp4", *(f"{n}.mp4" for n in range(5, 10)),
    }  # fmt: skip


def test_lines_that_are_no_json_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    bad = [
        '{"uri": "b.mp4", ',
        "[1, 2]",
        "[" * 100_000,
        '{"uri": "\\ud800.mp4", "label": "x"}',
        '{"uri": 3, "label": "x"}',
    ]
    bad += [
        '{"uri": "c.mp4", "label": true}',
        '{"uri": "c.mp4", "label": {"a": 1}}',
        '{"uri": "a\\u0000.mp4", "label": "x"}',
    ]
    manifest = read(write(tmp_path / "list.jsonl", "\n".join([*bad, '{"uri": "a.mp4", "label": "x"}'])))
    assert labels_by_uri(manifest) == {"a.mp4": ["x"]} and manifest.left_out == {"malformed": 7, "missing": 1}


def test_lines_without_end_and_quotes_without_end_do_not_fill_memory(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4")
    text = 'uri,label\na.mp4,x\n"' + "y" * 300_000 + "\nb.mp4,z\n"
    manifest = read(write(tmp_path / "list.csv", text))
    assert labels_by_uri(manifest)["a.mp4"] == ["x"] and manifest.left_out["malformed"] >= 1
    lines = '{"uri": "a.mp4", "label": "x"}\n' + "z" * 3 * list_file.LONGEST_LINE + '\n{"uri": "b.mp4", "label": "y"}\n'
    manifest = read(write(tmp_path / "list.jsonl", lines))
    assert labels_by_uri(manifest) == {"a.mp4": ["x"], "b.mp4": ["y"]}
    assert [one["where"].rpartition(", ")[2] for one in manifest.refusals()] == ["line 2"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9.mp4")
    make(tmp_path, strange, "a.mp4")
    (tmp_path / "list.csv").write_bytes(b"uri,label\ncaf\xe9.mp4,x\na.mp4,caf\xe9\n")
    with pytest.raises(UserError, match=r"not UTF-8(.|\n)*list.csv, line 2(.|\n)*encoding="):
        read(tmp_path / "list.csv")
    assert labels_by_uri(read(tmp_path / "list.csv", encoding="latin-1")) == {strange: ["x"], "a.mp4": ["café"]}


def test_a_damaged_gzip(tmp_path: Path) -> None:
    data = gzip.compress(b"uri,label\n" + b"".join(b"%d.mp4,x\n" % n for n in range(9999)))
    (tmp_path / "list.csv.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="the gzip file is damaged"):
        read(tmp_path / "list.csv.gz")


def test_a_folder_of_lists_called_by_their_split(tmp_path: Path) -> None:
    make(tmp_path, "clips/a.mp4", "clips/b.mp4", "clips/c.mp4")
    write(tmp_path / "train.csv", "path,label\nclips/a.mp4,x\nclips/b.mp4,y\n")
    write(tmp_path / "val.csv", "path,label\nclips/c.mp4,x\n")
    manifest = read(tmp_path)
    assert manifest.kind == "csv" and manifest.counts == {"train": 2, "val": 1}
    folders = read(tmp_path, kind="folder")
    assert folders.kind == "folder" and folders.classes == ("clips",)
    write(tmp_path / "val.csv", "some,other\ntable,here\n")
    assert read(tmp_path).kind == "folder"
    with pytest.raises(UserError, match="no list of kinetics"):
        read(tmp_path, kind="kinetics")


def test_stretches_of_one_video_are_on_one_side(tmp_path: Path) -> None:
    make(tmp_path, *[f"{n}.mp4" for n in range(40)])
    lines = [f"{n}.mp4,{n % 3},{start},{start + 2}" for n in range(40) for start in range(0, 9, 3)]
    manifest = read(write(tmp_path / "list.csv", "uri,label,start,end\n" + "\n".join(lines)), validation=0.4)
    sides: dict[str, set[str]] = {}
    for video in manifest.videos():
        sides.setdefault(video.uri, set()).add(video.split)
    assert sum(manifest.counts.values()) == 120 and {len(one) for one in sides.values()} == {1}
    assert manifest.counts["train"] and manifest.counts["val"]


def test_values_that_the_readers_choke_on_are_told(tmp_path: Path) -> None:
    name = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")])
    text = pa.array(["a"])
    parquet.write_table(pa.table({"uri": name, "label": text}), tmp_path / "bytes.parquet")
    parquet.write_table(pa.Table.from_arrays([text] * 3, names=["uri", "uri", "label"]), tmp_path / "twice.parquet")
    (tmp_path / "digits.json").write_text('[{"uri": "a.mp4", "label": ' + "9" * 5000 + "}]")
    for file in ("bytes.parquet", "twice.parquet", "digits.json"):
        with pytest.raises(UserError, match=file):
            read_manifest(str(tmp_path / file), CorpusSettings())
