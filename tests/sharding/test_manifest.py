"""The manifest and the plan: layouts, splits, and what must hold for every corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import UserError
from sharding.manifest import Video, assign_splits, read_manifest
from sharding.plan import manifest_digest, plan, shard_size

names = st.lists(st.text("abcdefg/", min_size=1, max_size=12), min_size=1, max_size=60, unique=True)


def make(root: Path, *paths: str, size: int = 2000) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0" * size)
    return str(root)


def test_class_folders_and_ignored_files(tmp_path: Path) -> None:
    corpus = make(tmp_path, "run/a.mp4", "run/deep/b.AVI", "jump/c.webm", "run/notes.txt", "run/.hidden.mp4")
    manifest = read_manifest(corpus, 0.1)
    assert manifest.classes == ("jump", "run")
    assert {(v.uri, v.labels) for v in manifest.videos} == {
        ("run/a.mp4", (1,)),
        ("run/deep/b.AVI", (1,)),
        ("jump/c.webm", (0,)),
    }
    assert "ignored 2 files" in manifest.notes[0] and "run/notes.txt" in manifest.notes[0]


def test_given_splits(tmp_path: Path) -> None:
    corpus = make(tmp_path, "train/x/a.mp4", "train/y/b.mp4", "valid/x/c.mp4", "test/x/d.mp4")
    manifest = read_manifest(corpus, 0.5)
    assert [(v.uri, v.split) for v in manifest.videos] == [
        ("train/x/a.mp4", "train"),
        ("train/y/b.mp4", "train"),
        ("valid/x/c.mp4", "val"),
    ]
    assert manifest.classes == ("x", "y") and "left out 1 videos in test/" in manifest.notes[0]


def test_test_folder_validates_where_no_other_does(tmp_path: Path) -> None:
    manifest = read_manifest(make(tmp_path, "train/x/a.mp4", "test/x/d.mp4"), 0.5)
    assert [(v.uri, v.split) for v in manifest.videos] == [
        ("test/x/d.mp4", "val"),
        ("train/x/a.mp4", "train"),
    ]


def test_flat_folder_is_one_class_and_train_may_be_a_class(tmp_path: Path) -> None:
    flat = make(tmp_path / "skating", "a.mp4", "b.mp4")
    assert read_manifest(flat, 0.1).classes == ("skating",)
    wheels = make(tmp_path / "wheels", "train/a.mp4", "car/b.mp4")
    assert read_manifest(wheels, 0.1).classes == ("car", "train")


def test_train_alone_gives_up_a_share(tmp_path: Path) -> None:
    manifest = read_manifest(make(tmp_path, *[f"train/x/{n}.mp4" for n in range(10)]), 0.1)
    assert {v.split for v in manifest.videos} == {"train", "val"}


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    corpus = make(tmp_path / "corpus", "x/a.mp4")
    make(tmp_path / "elsewhere", "b.mp4")
    (tmp_path / "corpus" / "y").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "x" / "up").symlink_to(tmp_path / "corpus")
    assert [v.uri for v in read_manifest(corpus, 0.0).videos] == ["x/a.mp4", "y/b.mp4"]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus"):
        read_manifest(str(tmp_path / "none"), 0.1)
    with pytest.raises(UserError, match="holds 1 other files"):
        read_manifest(make(tmp_path / "texts", "x/a.txt"), 0.1)
    with pytest.raises(UserError, match="is a file"):
        read_manifest(str(tmp_path / "texts" / "x" / "a.txt"), 0.1)


def test_loose_videos_are_left_out_with_a_note(tmp_path: Path) -> None:
    mixed = read_manifest(make(tmp_path / "mixed", "x/a.mp4", "y/b.mp4", *[f"{n}.mp4" for n in range(5)]), 0.1)
    assert [v.uri for v in mixed.videos] == ["x/a.mp4", "y/b.mp4"] and mixed.classes == ("x", "y")
    assert "left out 5 videos" in mixed.notes[0] and "0.mp4, 1.mp4, 2.mp4, …" in mixed.notes[0]
    paths = ["train/x/a.mp4", "train/y/b.mp4", "train/loose.mp4", "val/x/c.mp4", "above.mp4"]
    split = read_manifest(make(tmp_path / "split", *paths), 0.1)
    assert [v.uri for v in split.videos] == ["train/x/a.mp4", "train/y/b.mp4", "val/x/c.mp4"]
    assert "left out 2 videos" in split.notes[0] and "above.mp4, train/loose.mp4" in split.notes[0]


def test_a_split_whose_videos_are_all_loose_is_none(tmp_path: Path) -> None:
    paths = [f"train/{name}/{n}.mp4" for name in "xy" for n in range(5)]
    manifest = read_manifest(make(tmp_path, *paths, "val/loose.mp4"), 0.1)
    assert {v.split for v in manifest.videos} == {"train", "val"} and len(manifest.videos) == 10


def test_one_class_alone_is_remarked(tmp_path: Path) -> None:
    for corpus in (make(tmp_path / "skating", "a.mp4", "b.mp4"), make(tmp_path / "other", "skating/a.mp4")):
        notes = read_manifest(corpus, 0.1).notes
        assert "there is one class, skating, so there is nothing to tell apart" in notes[0]
        assert "CORPUS/class/video.mp4" in notes[0]
    assert read_manifest(make(tmp_path / "two", "x/a.mp4", "y/b.mp4"), 0.1).notes == ()


def test_validation_alone_is_remarked(tmp_path: Path) -> None:
    for name in ("val", "test"):
        manifest = read_manifest(make(tmp_path / name, f"{name}/x/a.mp4", f"{name}/y/b.mp4"), 0.1)
        assert {v.split for v in manifest.videos} == {"val"}
        assert "no video to train on" in manifest.notes[0] and "CORPUS/train/class" in manifest.notes[0]


def test_a_single_video_is_trained_on(tmp_path: Path) -> None:
    for n in range(20):
        manifest = read_manifest(make(tmp_path / str(n), f"x/{n}.mp4"), 0.5)
        assert [v.split for v in manifest.videos] == ["train"]


def test_a_file_address_is_a_folder(tmp_path: Path) -> None:
    corpus = make(tmp_path / "corpus", "x/a.mp4", "y/b.mp4")
    assert read_manifest(f"file://{corpus}", 0.1).videos == read_manifest(corpus, 0.1).videos
    with pytest.raises(UserError, match="no such corpus"):
        read_manifest(f"file://{tmp_path}/none", 0.1)


def test_an_empty_file_is_no_validation_split(tmp_path: Path) -> None:
    for n in range(20):
        root = tmp_path / str(n)
        make(root, f"x/good{n}.mp4", f"x/also{n}.mp4")
        make(root, f"x/empty{n}.mp4", size=0)
        good = [v.split for v in read_manifest(str(root), 0.1).videos if "empty" not in v.uri]
        assert sorted(good) == ["train", "val"]


@given(names, st.floats(0.01, 0.99))
def test_both_splits_exist_and_most_videos_stay_when_more_come(uris: list[str], share: float) -> None:
    splits = assign_splits(dict.fromkeys(uris, ""), share, {})
    assert set(splits) == set(uris)
    if len(uris) > 1:
        assert set(splits.values()) == {"train", "val"}
    more = assign_splits(dict.fromkeys([*uris, "one more"], ""), share, {})
    assert sum(more[uri] != splits[uri] for uri in uris) <= 1


@given(names, st.integers(1, 9), st.randoms())
def test_plan_has_every_video_once_in_any_order(uris: list[str], size: int, random: object) -> None:
    videos = [Video(uri, (len(uri) % 3,), "val" if len(uri) % 4 == 0 else "train") for uri in uris]
    jobs = plan(videos, size)
    assert sorted(v.uri for job in jobs for v in job.videos) == sorted(uris)
    assert [job.id for job in jobs] == [f"g0-{n:06d}" for n in range(len(jobs))]
    assert all(v.split == job.split for job in jobs for v in job.videos)
    assert all(1 <= len(job.videos) <= size for job in jobs)
    shuffled = videos.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, size) == jobs
    assert manifest_digest(shuffled, ["a"]) == manifest_digest(videos, ["a"]) != manifest_digest(videos, ["b"])


def test_a_small_corpus_makes_many_shards_and_a_large_one_long_ones() -> None:
    assert [shard_size(videos) for videos in (0, 1, 60, 64, 65, 4033, 1_100_000)] == [1, 1, 1, 1, 2, 64, 64]
    videos = [Video(f"x/{n}.mp4", (0,), "val" if n % 10 == 0 else "train") for n in range(60)]
    assert [len(job.videos) for job in plan(videos, None)] == [1] * 60
    assert all(32 <= -(-videos // shard_size(videos)) <= 64 for videos in range(64, 4096))


@given(names, st.floats(0.01, 0.99))
def test_something_is_always_trained_on(uris: list[str], share: float) -> None:
    assert "train" in assign_splits(dict.fromkeys(uris, ""), share, {}).values()
