"""Lists in a store, and in other encodings than UTF-8."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest

from sharding.base.errors import UserError
from sharding.base.settings import load_settings
from sharding.corpora.entries.roots import local_copy
from sharding.corpora.manifest import CorpusSettings
from sharding.storage.store import open_store
from tests.support.corpora import labels_by_uri, make, of_lines, read


def test_a_list_in_a_store_is_read_from_a_copy_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"memory://{tmp_path.name}").put("list.csv", b"uri,label\n")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = f"memory://{tmp_path.name}/list.csv"
    with local_copy(place) as copy:
        assert copy.read_bytes() == b"uri,label\n" and tmp_path in copy.parents
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), local_copy(f"memory://{tmp_path.name}/none.csv"):
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no temporary folder can be made"), local_copy(place):
        pass


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
    assert labels_by_uri(read(path, encoding=encoding)) == {"été.mp4": ["naïve"], "1.mp4": ["x"]}


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
        assert labels_by_uri(read(tmp_path / name, encoding=encoding)) == {"AAAAAAAAAA1.mp4": ["0"]}
    (tmp_path / name).write_bytes(text.encode("utf-16"))
    assert labels_by_uri(read(tmp_path / name, encoding="utf-16")) == {"AAAAAAAAAA1.mp4": ["0"]}
    (tmp_path / name).write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    assert labels_by_uri(read(tmp_path / name, encoding="utf-16-le")) == {"AAAAAAAAAA1.mp4": ["0"]}


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
