"""The manifest and the plan: folder layouts, splits, and what must hold for every corpus."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.corpora.entries.splits import SMALLEST_VIDEO, ValidationShare
from sharding.corpora.manifest import CorpusSettings, Manifest, Video, read_manifest
from sharding.format.plan import ShardJob, default_shard_size, plan
from sharding.media.input.source import Source

names = st.lists(st.text("abcdefg/", min_size=1, max_size=12), min_size=1, max_size=60, unique=True)


def make(root: Path, *paths: str, size: int = 2000) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0" * size)
    return str(root)


def read(corpus: str, validation: float = 0.1, **values: Any) -> Manifest:
    return read_manifest(corpus, CorpusSettings(validation=validation, **values))


def listed(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """uri → class names, split of every video."""
    return {v.uri: (*(manifest.classes[n] for n in v.labels), v.split) for v in manifest.videos()}


def planned(videos: list[Video], size: int | None) -> list[ShardJob]:
    """The plan of videos in the order that a manifest gives them."""
    ordered = sorted(videos, key=lambda video: (video.split, video.uri))
    counts = {split: sum(video.split == split for video in videos) for split in ("train", "val")}
    return list(plan(iter(ordered), counts, size))


def test_class_folders_and_ignored_files(tmp_path: Path) -> None:
    corpus = make(tmp_path, "run/a.mp4", "run/deep/b.AVI", "jump/c.webm", "run/notes.txt", "run/.hidden.mp4")
    manifest = read(corpus)
    assert manifest.classes == ("jump", "run") and manifest.root == corpus and manifest.kind == "folder"
    assert {(v.uri, v.labels, v.bytes) for v in manifest.videos()} == {
        ("run/a.mp4", (1,), 2000),
        ("run/deep/b.AVI", (1,), 2000),
        ("jump/c.webm", (0,), 2000),
    }
    assert "ignored 2 files" in manifest.notes[0] and "run/notes.txt" in manifest.notes[0]
    assert manifest.left_out == {} and list(manifest.refusals()) == []


def test_given_splits(tmp_path: Path) -> None:
    corpus = make(tmp_path, "train/x/a.mp4", "train/y/b.mp4", "valid/x/c.mp4", "test/x/d.mp4")
    manifest = read(corpus, 0.5)
    assert listed(manifest) == {
        "train/x/a.mp4": ("x", "train"),
        "train/y/b.mp4": ("y", "train"),
        "valid/x/c.mp4": ("x", "val"),
    }
    assert manifest.counts == {"train": 2, "val": 1} and manifest.left_out == {"test": 1}
    assert manifest.classes == ("x", "y") and "left out 1 videos in test/" in manifest.notes[0]


def test_test_folder_validates_where_no_other_does(tmp_path: Path) -> None:
    manifest = read(make(tmp_path, "train/x/a.mp4", "test/x/d.mp4"), 0.5)
    assert [(v.uri, v.split) for v in manifest.videos()] == [("train/x/a.mp4", "train"), ("test/x/d.mp4", "val")]


def test_flat_folder_is_one_class_and_train_may_be_a_class(tmp_path: Path) -> None:
    flat = make(tmp_path / "skating", "a.mp4", "b.mp4")
    assert read(flat).classes == ("skating",)
    assert read(make(tmp_path / "dance", "train/a.mp4", "val/b.mp4")).classes == ("dance",)
    wheels = make(tmp_path / "wheels", "train/a.mp4", "car/b.mp4")
    assert read(wheels).classes == ("car", "train")


@pytest.mark.parametrize("other", ["replacement/x.mp4", "dev/run/x.mp4"])
def test_a_folder_beside_those_of_splits_is_refused(tmp_path: Path, other: str) -> None:
    """Else the splits were classes, and what is for validation was trained on."""
    corpus = make(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4", other)
    with pytest.raises(UserError, match=rf"splits \(train, val\).*: {other.partition('/')[0]}(.|\n)*out of the corpus"):
        read(corpus)


def test_folders_named_by_numbers_are_names(tmp_path: Path) -> None:
    manifest = read(make(tmp_path, "7/a.mp4", "10/b.mp4"))
    assert manifest.classes == ("10", "7") and listed(manifest)["7/a.mp4"][0] == "7"


def test_train_alone_gives_up_a_share(tmp_path: Path) -> None:
    manifest = read(make(tmp_path, *[f"train/x/{n}.mp4" for n in range(10)]))
    assert manifest.counts["train"] and manifest.counts["val"]


def test_notes_beside_the_videos_are_no_lists(tmp_path: Path) -> None:
    corpus = make(tmp_path, "run/a.mp4", "jump/b.mp4", "run/a.json", "jump/b.csv", "labels.csv", "run/train.csv")
    manifest = read(corpus)
    assert manifest.kind == "folder" and len(listed(manifest)) == 2 and "ignored 4 files" in manifest.notes[0]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    corpus = make(tmp_path / "corpus", "x/a.mp4")
    make(tmp_path / "elsewhere", "b.mp4")
    (tmp_path / "corpus" / "y").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "x" / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "y" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    sizes = {v.uri: v.bytes for v in read(corpus, 0.0).videos()}
    assert sizes == {"x/a.mp4": 2000, "y/b.mp4": 2000, "y/gone.mp4": 0}


def test_names_that_are_not_utf8_go_through(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9")
    corpus = make(tmp_path, f"{strange}/{strange}.mp4", "tea/a.mp4")
    manifest = read(corpus, 0.0)
    assert manifest.classes == ("caf\\udce9", "tea")
    assert {v.uri for v in manifest.videos()} == {f"{strange}/{strange}.mp4", "tea/a.mp4"}
    loose = read(make(tmp_path, f"{strange}.mp4"), 0.0)
    assert next(loose.refusals())["uri"] == "caf\\udce9.mp4" and "caf\\udce9.mp4" in loose.notes[0]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus"):
        read(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds 1 other files(.|\n)*Known are: .*Kinetics"):
        read(make(tmp_path / "texts", "x/a.txt"))
    with pytest.raises(UserError, match=r"is a file(.|\n)*Known are: .*Kinetics"):
        read(str(tmp_path / "texts" / "x" / "a.txt"))
    with pytest.raises(UserError, match="not downloaded from the web") as caught:
        read("https://user:secret@example.org/videos?token=secret")
    assert "secret" not in str(caught.value)


def test_loose_videos_are_left_out_with_a_note(tmp_path: Path) -> None:
    mixed = read(make(tmp_path / "mixed", "x/a.mp4", "y/b.mp4", *[f"{n}.mp4" for n in range(5)]))
    assert set(listed(mixed)) == {"x/a.mp4", "y/b.mp4"} and mixed.classes == ("x", "y")
    assert "left out 5 videos" in mixed.notes[0] and "0.mp4, 1.mp4, 2.mp4, …" in mixed.notes[0]
    assert mixed.left_out == {"unlabelled": 5} == {"unlabelled": len(list(mixed.refusals()))}
    paths = ["train/x/a.mp4", "train/y/b.mp4", "train/loose.mp4", "val/x/c.mp4", "above.mp4"]
    split = read(make(tmp_path / "split", *paths))
    assert set(listed(split)) == {"train/x/a.mp4", "train/y/b.mp4", "val/x/c.mp4"}
    assert "left out 2 videos" in split.notes[0] and "above.mp4, train/loose.mp4" in split.notes[0]


def test_a_split_whose_videos_are_all_loose_is_none(tmp_path: Path) -> None:
    paths = [f"train/{name}/{n}.mp4" for name in "xy" for n in range(5)]
    manifest = read(make(tmp_path, *paths, "val/loose.mp4"))
    assert manifest.counts["train"] and manifest.counts["val"] and sum(manifest.counts.values()) == 10


def test_one_class_alone_is_remarked(tmp_path: Path) -> None:
    for corpus in (make(tmp_path / "skating", "a.mp4", "b.mp4"), make(tmp_path / "other", "skating/a.mp4")):
        notes = read(corpus).notes
        assert "there is one class, skating, so there is nothing to tell apart" in notes[0]
        assert "CORPUS/class/video.mp4" in notes[0]
    assert read(make(tmp_path / "two", *[f"{name}/{n}.mp4" for name in "xy" for n in range(9)])).notes == ()


def test_validation_alone_is_remarked(tmp_path: Path) -> None:
    for name in ("val", "test"):
        manifest = read(make(tmp_path / name, f"{name}/x/a.mp4", f"{name}/y/b.mp4"))
        assert manifest.counts == {"train": 0, "val": 2}
        assert "no video to train on" in manifest.notes[0] and "CORPUS/train/class" in manifest.notes[0]


def test_a_single_video_is_trained_on(tmp_path: Path) -> None:
    for n in range(20):
        assert read(make(tmp_path / str(n), f"x/{n}.mp4"), 0.5).counts == {"train": 1, "val": 0}


def test_a_file_address_is_a_folder(tmp_path: Path) -> None:
    corpus = make(tmp_path / "corpus", "x/a.mp4", "y/b.mp4")
    assert list(read(f"file://{corpus}").videos()) == list(read(corpus).videos())
    with pytest.raises(UserError, match="no such corpus"):
        read(f"file://{tmp_path}/none")


def test_an_empty_file_is_no_validation_split(tmp_path: Path) -> None:
    for n in range(20):
        root = tmp_path / str(n)
        make(root, f"x/good{n}.mp4", f"x/also{n}.mp4")
        make(root, f"x/empty{n}.mp4", size=0)
        good = [v.split for v in read(str(root)).videos() if "empty" not in v.uri]
        assert sorted(good) == ["train", "val"]


def test_a_store_is_a_corpus(s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sharding.storage.store import open_store

    for name, value in s3[0].items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3[1]}/folders"
    store = open_store(url)
    for path in ("x/a.mp4", "x/b.mp4", "y/c.mp4", "notes.txt", "loose.mp4"):
        store.put(path, bytes(2000))
    manifest = read(url + "/", 0.0)
    assert listed(manifest) == {"x/a.mp4": ("x", "train"), "x/b.mp4": ("x", "train"), "y/c.mp4": ("y", "train")}
    assert manifest.root == url and manifest.left_out == {"unlabelled": 1} and "ignored 1 files" in manifest.notes[1]


def test_an_object_whose_key_looks_like_another_place_is_not_read_from_there(tmp_path: Path) -> None:
    make(tmp_path / "private", "own.mp4")
    outside = [f"{tmp_path}/private/own.mp4", f"file://{tmp_path}/private/own.mp4", "s3://other/own.mp4"]
    listing = [(key, 2000) for key in (*outside, "x/a.mp4", "y/http://example.org/b.mp4")]
    (tmp_path / "bucket").mkdir()
    manifest = read_manifest(str(tmp_path / "bucket"), CorpusSettings(validation=0), files=lambda place: listing)
    assert {video.uri for video in manifest.videos()} == {"x/a.mp4", "y/http://example.org/b.mp4"}
    assert f"ignored 3 files that are not videos by their name: {outside[0]}" in manifest.notes[0]
    assert Source("s3://bucket", "y/http://example.org/b.mp4").path is None
    assert Source("s3://bucket", "y/http://example.org/b.mp4").where == "s3://bucket/y/http://example.org/b.mp4"

    (tmp_path / "list.csv").write_text("uri,label\n" + "".join(f"s3://bucket/{key},x\n" for key, _ in listing))
    given_ = CorpusSettings(validation=0, media="s3://bucket")
    manifest = read_manifest(str(tmp_path / "list.csv"), given_, files=lambda place: listing)
    assert {video.uri for video in manifest.videos()} == {"x/a.mp4", "y/http://example.org/b.mp4"}
    assert manifest.left_out == {"outside_roots": 3}


def splits_of(uris: Iterable[str], validation: float, sizes: dict[str, int] | None = None) -> dict[str, str]:
    """uri → side, as a corpus that gives no split has them."""
    shares = ValidationShare(validation)
    splits = {}
    for uri in uris:
        splits[uri] = shares.split_of(uri.encode())
        shares.observe(uri.encode(), (sizes or {}).get(uri))
    crossing = shares.source_to_move()
    return splits | ({crossing[0].decode(): crossing[1]} if crossing else {})


@settings(deadline=None)
@given(names, st.floats(0.01, 0.99))
def test_both_splits_exist_and_most_videos_stay_when_more_come(uris: list[str], share: float) -> None:
    splits = splits_of(uris, share)
    assert set(splits) == set(uris) and "train" in splits.values()
    if len(uris) > 1:
        assert set(splits.values()) == {"train", "val"}
    more = splits_of([*uris, "one more"], share)
    assert sum(more[uri] != splits[uri] for uri in uris) <= 1


@settings(deadline=None)
@given(names, st.floats(0.01, 0.99), st.data())
def test_small_files_fill_no_split(uris: list[str], share: float, data: st.DataObject) -> None:
    sizes = {uri: data.draw(st.sampled_from([0, SMALLEST_VIDEO])) for uri in uris}
    splits = splits_of(uris, share, sizes)
    good = {splits[uri] for uri in uris if sizes[uri]}
    assert len(good) == min(2, sum(map(bool, sizes.values())))


@settings(deadline=None)
@given(names, st.integers(1, 9))
def test_plan_has_every_video_once(uris: list[str], size: int) -> None:
    videos = [Video(uri, (len(uri) % 3,), "val" if len(uri) % 4 == 0 else "train") for uri in uris]
    jobs = planned(videos, size)
    assert sorted(v.uri for job in jobs for v in job.videos) == sorted(uris)
    assert [job.id for job in jobs] == [f"g0-{n:06d}" for n in range(len(jobs))]
    assert [job.split for job in jobs] == sorted(job.split for job in jobs)
    assert all(v.split == job.split for job in jobs for v in job.videos)
    assert all(1 <= len(job.videos) <= size for job in jobs)
    short = [job for job in jobs if len(job.videos) < size]
    assert len(short) == len({job.split for job in short})


def test_a_plan_is_made_as_it_is_read_and_names_its_generation() -> None:
    taken = []

    def videos() -> Iterable[Video]:
        for n in range(100):
            taken.append(n)
            yield Video(f"{n}.mp4", (0,), "train")

    jobs = plan(videos(), {"train": 100}, 5, generation=3)
    assert next(jobs).id == "g3-000000" and len(taken) <= 6
    assert [len(job.videos) for job in jobs] == [5] * 19


def test_a_small_corpus_makes_many_shards_and_a_large_one_long_ones() -> None:
    assert [default_shard_size(videos) for videos in (0, 1, 60, 64, 65, 4033, 1_100_000)] == [1, 1, 1, 1, 2, 64, 64]
    videos = [Video(f"x/{n}.mp4", (0,), "val" if n % 10 == 0 else "train") for n in range(60)]
    assert [len(job.videos) for job in planned(videos, None)] == [1] * 60
    assert all(32 <= -(-videos // default_shard_size(videos)) <= 64 for videos in range(64, 4096))
