"""The published lists of Sports-1M, Kinetics, UCF101 and HMDB51, joined with the files that a user has."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sharding.base.errors import UserError
from sharding.corpora.formats.video_ids import ids_of_file, video_id
from sharding.corpora.manifest import CorpusSettings, Manifest, read_manifest
from sharding.storage.store import open_store

WATCH = "https://www.youtube.com/watch?v="


def make(root: Path, *paths: str) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(2000))
    return str(root)


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def read(corpus: str | Path, **settings: Any) -> Manifest:
    return read_manifest(str(corpus), CorpusSettings(**{"validation": 0.0, **settings}))


def labels_by_uri(manifest: Manifest) -> dict[str, Any]:
    """uri → labels, split of every video."""
    return {v.uri: (v.labels, v.split) for v in manifest.videos()}


def refused(manifest: Manifest) -> list[tuple[str, str, str]]:
    """(name, kind, list's name and line) of what is left out."""
    told = [(one["uri"], one["kind"], one["where"].rpartition("/")[2]) for one in manifest.refusals()]
    assert sum(manifest.left_out.values()) == len(told)
    return told


@pytest.fixture()
def sports(tmp_path: Path) -> Path:
    """Sports-1M's folder and media: ids A to F, of which D is gone, in every way that names carry an id."""
    make(tmp_path / "media", "a/AAAAAAAAAA1.mp4", "b/deep/BBBBBBBBB-2.webm", "CCCCCCCCC_3.MKV", "c/EEEEEEEEEE5.mp4")
    make(tmp_path / "media", "d/EEEEEEEEEE5.mkv", "The best of [FFFFFFFFFF6].mp4", "unlisted.mp4")
    train = [f"{WATCH}AAAAAAAAAA1 0", f"{WATCH}BBBBBBBBB-2 1,2", f"{WATCH}DDDDDDDDDD4 1", f"{WATCH}EEEEEEEEEE5 9"]
    test = [f"{WATCH}CCCCCCCCC_3&feature=x 2", f"{WATCH}EEEEEEEEEE5 0,7", "https://youtu.be/FFFFFFFFFF6 1"]
    write(tmp_path / "sports" / "original" / "train_partition.txt", *train)
    write(tmp_path / "sports" / "original" / "test_partition.txt", *test)
    write(tmp_path / "sports" / "labels.txt", "archery", "biathlon", "cycling")
    return tmp_path


PLANNED = {
    "a/AAAAAAAAAA1.mp4": ((0,), "train"),
    "b/deep/BBBBBBBBB-2.webm": ((1, 2), "train"),
    "CCCCCCCCC_3.MKV": ((2,), "val"),
    "c/EEEEEEEEEE5.mp4": ((0,), "val"),
    "The best of [FFFFFFFFFF6].mp4": ((1,), "val"),
}


def test_sports1m(sports: Path) -> None:
    manifest = read(sports / "sports", media=str(sports / "media"))
    assert manifest.kind == "sports1m" and manifest.classes == ("archery", "biathlon", "cycling")
    assert labels_by_uri(manifest) == PLANNED and manifest.root == str(sports / "media")
    assert {v.bytes for v in manifest.videos()} == {2000}
    assert manifest.left_out == {"ambiguous": 1, "label_out_of_range": 2, "missing": 1}
    assert refused(manifest) == [
        ("EEEEEEEEEE5", "ambiguous", "test_partition.txt, line 2"),
        ("EEEEEEEEEE5", "label_out_of_range", "test_partition.txt, line 2"),
        ("DDDDDDDDDD4", "missing", "train_partition.txt, line 3"),
        ("EEEEEEEEEE5", "label_out_of_range", "train_partition.txt, line 4"),
    ]
    assert "no class 7; its other labels remain" in [one["reason"] for one in manifest.refusals()][1]


def test_sports1m_zipped_and_as_one_list(sports: Path) -> None:
    original = sports / "sports" / "original"
    for name in ("train_partition.txt", "test_partition.txt"):
        (original / f"{name}.gz").write_bytes(gzip.compress((original / name).read_bytes()))
    both = read(sports / "sports", media=str(sports / "media"))
    assert labels_by_uri(both) == PLANNED and not both.left_out.get("duplicate")  # not read twice
    for name in ("train_partition.txt", "test_partition.txt"):
        (original / name).unlink()
    assert labels_by_uri(read(original, media=str(sports / "media"))) == PLANNED
    train = read(original / "train_partition.txt.gz", media=str(sports / "media"), validation=0.5)
    assert train.counts == {"train": 2, "val": 0} and train.classes == ("archery", "biathlon", "cycling")
    write(sports / "mine.txt", f"{WATCH}AAAAAAAAAA1 0", f"{WATCH}CCCCCCCCC_3 4")
    mine = read(sports / "mine.txt", media=str(sports / "media"))
    assert mine.kind == "sports1m" and mine.classes == ("0", "1", "2", "3", "4")


def test_sports1m_lines_that_are_none(sports: Path) -> None:
    lines = [
        f"{WATCH}AAAAAAAAAA1 0",
        f"{WATCH}BBBBBBBBB-2",
        f"{WATCH}BBBBBBBBB-2 1;2",
        "a b c",
        f"{WATCH}BBBBBBBBB-2 -1",
    ]
    corpus = write(sports / "train_partition.txt", *lines)
    manifest = read(corpus, media=str(sports / "media"))
    assert manifest.left_out == {"malformed": 3, "unlabelled": 1} and len(labels_by_uri(manifest)) == 1
    with pytest.raises(UserError, match=r"no video beside it(.|\n)*media="):
        read(sports / "sports")


@pytest.mark.parametrize("form", ["array", "lines", "by id", "by split"])
def test_sports1m_json(sports: Path, form: str) -> None:
    entries = [
        {"duration": 10, "id": "AAAAAAAAAA1", "source487": "train", "label487": [0], "stitchTubeId": 7},
        {"stitchTubeId": "BBBBBBBBB-2", "source487": "train", "label487": [1, 2]},
        {"id": "CCCCCCCCC_3", "source487": "test", "label487": [2]},
        {"id": "DDDDDDDDDD4", "source487": "train", "label487": []},
        {"source487": "train", "label487": [0]},
    ]
    if form == "by id":
        value: Any = {entry.get("id") or entry.get("stitchTubeId") or "": entry for entry in entries}
    elif form == "by split":
        value = {side: [e for e in entries if e["source487"] == side] for side in ("train", "test")}
        for entry in entries:
            del entry["source487"]
    else:
        value = entries
    lines = [json.dumps(entry) for entry in entries] if form == "lines" else [json.dumps(value, indent=1)]
    manifest = read(write(sports / "sports" / "sports1m.json", *lines), media=str(sports / "media"))
    assert manifest.kind == "sports1m" and manifest.classes == ("archery", "biathlon", "cycling")
    assert labels_by_uri(manifest) == {
        "a/AAAAAAAAAA1.mp4": ((0,), "train"),
        "b/deep/BBBBBBBBB-2.webm": ((1, 2), "train"),
        "CCCCCCCCC_3.MKV": ((2,), "val"),
    }
    assert manifest.left_out == {"malformed": 1, "unlabelled": 1}


def test_a_cross_validation_that_leaks(sports: Path) -> None:
    folder = sports / "cross-validation"
    write(folder / "sports3_train.txt", f"{WATCH}AAAAAAAAAA1 0", f"{WATCH}BBBBBBBBB-2 1")
    write(folder / "sports3_test.txt", f"{WATCH}BBBBBBBBB-2 2", f"{WATCH}CCCCCCCCC_3 2", f"{WATCH}CCCCCCCCC_3 0")
    write(folder / "sports4_test.txt", f"{WATCH}AAAAAAAAAA1 0")
    manifest = read(folder, media=str(sports / "media"), fold=3)
    assert labels_by_uri(manifest) == {
        "a/AAAAAAAAAA1.mp4": ((0,), "train"),
        "b/deep/BBBBBBBBB-2.webm": ((1,), "train"),
        "CCCCCCCCC_3.MKV": ((0, 2), "val"),
    }
    assert ("b/deep/BBBBBBBBB-2.webm", "leak", "sports3_test.txt, line 1") in refused(manifest)
    assert manifest.left_out == {"duplicate": 1, "leak": 1}
    assert any("listed for training as well" in note for note in manifest.notes)
    with pytest.raises(UserError, match="fold 5"):
        read(folder, media=str(sports / "media"), kind="sports1m", fold=5)


@pytest.mark.slow
def test_sports1m_in_a_store(sports: Path, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3[0].items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3[1]}/sports"
    store = open_store(url)
    for path in sorted(sports.rglob("*.*")):
        store.put_file(path.relative_to(sports).as_posix(), path)
    manifest = read(f"{url}/sports", media=f"{url}/media")
    assert labels_by_uri(manifest) == PLANNED and manifest.classes == ("archery", "biathlon", "cycling")
    assert manifest.root == f"{url}/media"
    assert refused(manifest) == refused(read(sports / "sports", media=str(sports / "media")))
    alone = read(f"{url}/sports/original/test_partition.txt", media=str(sports / "media"))
    assert alone.kind == "sports1m" and set(alone.counts.values()) == {0, 3}


KINETICS = "label,youtube_id,time_start,time_end,split"


def test_kinetics_with_every_layout(tmp_path: Path) -> None:
    media = make(
        tmp_path / "media", "train/playing_chess/aaaaaaaaaa1_000010_000020.mp4", "bbbbbbbbb-2_000000_000010.mkv",
        "val/tap dancing/cccccccccc3_000090_000100.mp4", "whole/dddddddddd4.mp4", "aaaaaaaaaa1.mp4",
    )  # fmt: skip
    write(
        tmp_path / "lists" / "train.csv", KINETICS, "playing chess,aaaaaaaaaa1,10,20,train",
        "tap dancing,bbbbbbbbb-2,0.0,10.0,train", "tap dancing,dddddddddd4,5,15,train",
        "playing chess,dddddddddd4,25,35,train", '"clean, shoes",gone,1,11,train',
        "tap dancing,bad,20,10,train", "tap dancing,aaaaaaaaaa1,10,20,train",
    )  # fmt: skip
    write(
        tmp_path / "lists" / "validate.csv",
        KINETICS,
        "tap dancing,cccccccccc3,90,100,validate",
        "x,dddddddddd4,50,60,val",
    )
    write(tmp_path / "lists" / "test.csv", "youtube_id,time_start,time_end,split", "eeeeeeeeee5,1,11,test")
    manifest = read(tmp_path / "lists", media=media)
    assert manifest.kind == "kinetics" and manifest.classes == ("clean, shoes", "playing chess", "tap dancing", "x")
    assert {(v.uri, v.start, v.end): (v.labels, v.split) for v in manifest.videos()} == {
        ("train/playing_chess/aaaaaaaaaa1_000010_000020.mp4", None, None): ((1, 2), "train"),
        ("bbbbbbbbb-2_000000_000010.mkv", None, None): ((2,), "train"),
        ("whole/dddddddddd4.mp4", 5.0, 15.0): ((2,), "train"),
        ("whole/dddddddddd4.mp4", 25.0, 35.0): ((1,), "train"),
        ("val/tap dancing/cccccccccc3_000090_000100.mp4", None, None): ((2,), "val"),
    }
    assert manifest.left_out == {"duplicate": 1, "leak": 1, "malformed": 1, "missing": 1, "unlabelled": 1}
    train = read(tmp_path / "lists" / "train.csv", media=media)
    assert train.kind == "kinetics" and train.counts == {"train": 4, "val": 0}


def test_kinetics_asked_for_and_another_list_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Kinetics list(.|\n)*label,youtube_id"):
        read(write(tmp_path / "list.csv", "uri,label", "a,b"), kind="kinetics", media=make(tmp_path / "m", "a.mp4"))


@pytest.mark.parametrize("flat", [False, True])
def test_ucf101(tmp_path: Path, flat: bool) -> None:
    names = ["Archery/v_Archery_g01_c01", "HandstandPushups/v_HandStandPushups_g01_c01", "Archery/v_Archery_g09_c02"]
    files = [name.rpartition("/")[2] if flat else name for name in names]
    make(tmp_path / "UCF-101", *[f"{name}.avi" for name in files])
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "2 Archery", "1 HandstandPushups")
    write(lists / "trainlist01.txt", f"{names[0]}.avi 2", f"{names[1]}.avi 1\r")
    write(lists / "testlist01.txt", f"{names[2]}.avi", "Archery/v_Archery_g09_c03.avi", "v_Archery_g09_c02.avi")
    write(lists / "trainlist02.txt", f"{names[2]}.avi 2")
    write(lists / "testlist02.txt", f"{names[0]}.avi")
    for corpus, settings in ((lists, {}), (tmp_path, {}), (lists, {"media": str(tmp_path / "UCF-101")})):
        manifest = read(corpus, **settings)
        assert manifest.kind == "ucf101" and manifest.classes == ("HandstandPushups", "Archery")
        inside = "UCF-101/" if corpus == tmp_path else ""
        expected = dict(zip(files, [((1,), "train"), ((0,), "train"), ((1,), "val")], strict=True))
        assert labels_by_uri(manifest) == {f"{inside}{name}.avi": value for name, value in expected.items()}
        assert manifest.left_out == {"duplicate": 1, "missing": 1}
    assert labels_by_uri(read(lists, fold=2)) == {f"{files[2]}.avi": ((1,), "train"), f"{files[0]}.avi": ((1,), "val")}
    with pytest.raises(UserError, match="no list of ucf101"):
        read(lists, fold=3, kind="ucf101")
    for corpus in (lists, tmp_path):  # no class folders
        with pytest.raises(UserError, match=r"of fold 1, 2, none of fold 4(.|\n)*fold=1"):
            read(corpus, fold=4)


def test_ucf101_without_its_class_list(tmp_path: Path) -> None:
    make(tmp_path, "B/v_B_g01_c01.avi", "A/v_A_g01_c01.avi")
    write(tmp_path / "trainlist03.txt", "B/v_B_g01_c01.avi 1", "A/v_A_g01_c01.avi 2")
    assert read(tmp_path, fold=3).classes == ("A", "B")
    with pytest.raises(UserError, match="line 2"):
        write(tmp_path / "classInd.txt", "1 A", "A 2")
        read(tmp_path, fold=3)


def test_hmdb51(tmp_path: Path) -> None:
    make(tmp_path / "hmdb51", "wave/w1.avi", "wave/w2.avi", "wave/both.avi", "run/r1.avi", "run/both.avi")
    lists = tmp_path / "splits"
    write(lists / "wave_test_split1.txt", "w1.avi 1 ", "w2.avi 0 ", "both.avi 2 ", "w3.avi 1")
    write(lists / "run_test_split1.txt", "r1.avi 2 ", "both.avi 1 ", "r2.avi 3")
    write(lists / "run_test_split2.txt", "r1.avi 1 ")
    manifest = read(lists)
    assert manifest.kind == "hmdb51" and manifest.classes == ("run", "wave")
    assert labels_by_uri(manifest) == {
        "wave/w1.avi": ((1,), "train"),
        "run/r1.avi": ((0,), "val"),
        "run/both.avi": ((0,), "train"),
        "wave/both.avi": ((1,), "val"),
    }
    assert manifest.left_out == {"malformed": 1, "missing": 1, "unused": 1}


def test_files_by_the_old_names_of_youtube_dl(tmp_path: Path) -> None:
    ids = ["AAAAAAAAAA1", "-BBBBBBBB-2", "CCCCC-CCC_3", "--_DDDDDDD4", "EEEEEEEEEE5", "FFFFFFFFFF6", "GGGGGGGGGG7"]
    names = [f"A title - of two-{one}" for one in ids[:4]]
    media = make(
        tmp_path / "media", *[f"{name}.mp4" for name in names], "EEEEEEEEEE5.mp4", "A title-EEEEEEEEEE5.mp4",
        "x/One-FFFFFFFFFF6.mkv", "Two-FFFFFFFFFF6.mkv", "a-clip-GGGGGGGGGG7.mp4", "Wrong-HHHHHHHHHH.mp4",
    )  # fmt: skip
    listed = [f"{WATCH}{one} {n},{n + 1}" for n, one in enumerate([*ids, "HHHHHHHHHH8", "a-clip-GGGGGGGGGG7"])]
    manifest = read(write(tmp_path / "train_partition.txt", *listed[:-1]), media=media)
    assert labels_by_uri(manifest) == {
        **{f"{name}.mp4": ((n, n + 1), "train") for n, name in enumerate(names)},
        "EEEEEEEEEE5.mp4": ((4, 5), "train"),
        "Two-FFFFFFFFFF6.mkv": ((5, 6), "train"),
        "a-clip-GGGGGGGGGG7.mp4": ((6, 7), "train"),
    }
    assert manifest.left_out == {"ambiguous": 2, "missing": 1}
    kinetics = write(tmp_path / "kinetics.csv", KINETICS, f"run,{ids[1]},1,11,train", f"run,{ids[2]},3,13,val")
    stretches = {(v.uri, v.start, v.end) for v in read(kinetics, media=media).videos()}
    assert stretches == {(f"{names[1]}.mp4", 1.0, 11.0), (f"{names[2]}.mp4", 3.0, 13.0)}
    by_name = write(tmp_path / "sports1m.json", json.dumps([{"id": "a-clip-GGGGGGGGGG7", "label487": [0]}]))
    assert set(labels_by_uri(read(by_name, media=media, kind="sports1m"))) == {"a-clip-GGGGGGGGGG7.mp4"}


@pytest.mark.parametrize("in_list", ["HandStandPushups", "HandstandPushups"])
@pytest.mark.parametrize("on_disk", ["HandStandPushups", "HandstandPushups", "handstandpushups"])
@pytest.mark.parametrize("folder", ["HandStandPushups/", "HandstandPushups/", ""])
def test_ucf101_names_whose_class_is_written_otherwise(tmp_path: Path, in_list: str, on_disk: str, folder: str) -> None:
    make(tmp_path / "UCF-101", f"{folder}v_{on_disk}_g01_c01.avi", f"{folder}v_{on_disk}_g02_c01.avi")
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "trainlist01.txt", f"{in_list}/v_{in_list}_g01_c01.avi 1")
    write(lists / "testlist01.txt", f"HandstandPushups/v_{in_list}_g02_c01.avi", "HandstandPushups/v_X_g02_c01.avi")
    for classes in ("1 HandstandPushups", "1 HandStandPushups"):
        write(lists / "classInd.txt", classes)
        manifest = read(lists)
        assert manifest.classes == (classes[2:],) and manifest.left_out == {"missing": 1}
        assert labels_by_uri(manifest) == {
            f"{folder}v_{on_disk}_g01_c01.avi": ((0,), "train"),
            f"{folder}v_{on_disk}_g02_c01.avi": ((0,), "val"),
        }


def test_ids_of_addresses_and_files() -> None:
    for text in (
        f"{WATCH}a-b_c1", f"{WATCH}a-b_c1&t=3", f"{WATCH}a-b_c1#x", "http://youtube.com/watch?list=x&v=a-b_c1", "https://youtu.be/a-b_c1?t=1",
        "https://www.youtube.com/embed/a-b_c1", "folder/a-b_c1.mp4", "a-b_c1",
    ):  # fmt: skip
        assert video_id(text) == "a-b_c1"
    assert ids_of_file("x/Title [0123456789-].f1.mp4") == ("Title [0123456789-].f1",)
    assert ids_of_file("x/Title [0123456789-].mp4") == ("0123456789-",) and ids_of_file("x/v1.2.mp4") == ("v1.2",)
    assert ids_of_file("x/A title-0123456789-.mp4") == ("A title-0123456789-", "0123456789-")
    assert ids_of_file("x/Title--_23456789-.mp4") == ("Title--_23456789-", "-_23456789-")
    for name in ("0123-567_9-", "_-234567890", "A title-0123456789-0", "ID3456789-1_000001_000011", "x-0123456789é"):
        assert ids_of_file(f"x/{name}.mp4") == (name,)
