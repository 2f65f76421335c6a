"""What holds for every corpus once it is read: order, sides, each video once, and what is new beside a plan."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.corpora import corpus_db as gather
from sharding.corpora.corpus_db import CorpusDatabase
from sharding.corpora.entries.labels import LabelEncoder
from sharding.corpora.entries.rows import CorpusList, Row
from sharding.corpora.manifest import CorpusSettings, Manifest, Video, read_manifest
from sharding.corpora.merge import identity_digest
from sharding.format.plan import plan
from tests.benchmarks import planning


def manifest_of(
    root: Path, lines: list[str], files: list[tuple[str, int]], classes: tuple[str, ...] | None = None, **values: Any
) -> Manifest:
    """A CSV of `lines`, whose videos are a store's `files`."""
    (root / "list.csv").write_text("\n".join(["uri,label,split,start,end", *lines]) + "\n")

    def listing(place: str) -> Iterator[tuple[str, int | None]]:
        assert place == "s3://bucket/media"
        yield from files

    given_ = CorpusSettings(media="s3://bucket/media", labels_separator=";", **values)
    return read_manifest(str(root / "list.csv"), given_, classes, files=listing)


rows = st.lists(
    st.tuples(
        st.sampled_from([f"{letter}.mp4" for letter in "abcdefgh"] + ["../x", "http://x/y"]),
        st.sampled_from(["run", "jump", "run;jump", "", "swim;run"]),
        st.sampled_from(["", "train", "val", "test", "other"]),
        st.sampled_from([",", "0,2", "2,5", "3,1", "1,"]),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(rows, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_lines_and_files_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, listed: list[tuple[str, ...]], split: bool, shuffle: random.Random
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    lines = [f"{uri},{label},{side if split else ''},{times}" for uri, label, side, times in listed]
    files = [(f"{letter}.mp4", 2000 + ord(letter)) for letter in "abcdef"]
    try:
        first = manifest_of(root, lines, files)
    except UserError as error:
        assert "no video that can be planned" in str(error) or "empty" in str(error)
        return
    shuffled, shuffled_files = lines.copy(), files.copy()
    shuffle.shuffle(shuffled)
    shuffle.shuffle(shuffled_files)
    second = manifest_of(root, shuffled, shuffled_files)
    videos = list(first.videos())
    assert list(second.videos()) == videos == list(first.videos())
    assert second.classes == first.classes and second.left_out == first.left_out and second.counts == first.counts

    identities = [(v.uri, v.start, v.end) for v in videos]
    assert len(set(identities)) == len(identities) == sum(first.counts.values())
    sides: dict[str, set[str]] = {}
    for video in videos:
        assert video.bytes == 2000 + ord(video.uri[0]) and video.labels
        sides.setdefault(video.uri, set()).add(video.split)
    assert all(len(one) == 1 for one in sides.values())  # no source is on both sides
    assert [v.split for v in videos] == sorted(v.split for v in videos)
    out = sum(count for kind, count in first.left_out.items() if kind != "ambiguous")
    assert len(videos) + out == len(lines)  # nothing is dropped without a word
    assert len(list(first.refusals())) == sum(first.left_out.values())
    jobs = list(plan(first.videos(), first.counts, 3))
    assert [v for job in jobs for v in job.videos] == videos


def test_the_order_inside_a_split_is_that_of_the_hash(tmp_path: Path) -> None:
    lines = [f"{n}.mp4,x,train,," for n in range(50)] + ["0.mp4,x,train,1,2", "v.mp4,x,val,,"]
    manifest = manifest_of(tmp_path, lines, [(f"{n}.mp4", 2000) for n in [*range(50), "v"]])
    keys = [identity_digest(v.uri.encode(), v.start, v.end) for v in manifest.videos() if v.split == "train"]
    assert keys == sorted(keys) and len(set(keys)) == 51
    assert identity_digest(b"a.mp4", None, None) == hashlib.sha256(b"order:a.mp4").digest()[:16]
    assert (
        len({identity_digest(b"a.mp4", *times) for times in [(None, None), (1.0, None), (None, 1.0), (0.0, 1.0)]}) == 4
    )


def test_what_is_planned_is_taken_away(tmp_path: Path) -> None:
    files = [(f"{n}.mp4", 2000) for n in range(8)]
    before = [f"{n}.mp4,{'run' if n % 2 else 'jump'},{'val' if n == 1 else 'train'},," for n in range(6)]
    old = manifest_of(tmp_path, before, files)
    planned = list(old.videos())
    now = [before[0], "1.mp4,run,train,,", "2.mp4,run;jump,train,,", before[3], before[4]]  # 1, 2 changed; 5 is gone
    now += ["6.mp4,jump,train,,", "7.mp4,swim,val,,", "0.mp4,jump,val,3,5", "3.mp4,run,train,1,2"]
    files[4] = ("4.mp4", 3000)
    new = manifest_of(tmp_path, now, files, classes=old.classes)
    assert new.classes == ("jump", "run", "swim")
    compared = new.remove_planned(iter(planned))
    assert (compared.same, compared.changed, compared.gone) == (2, 3, 1)
    told = "\n".join(compared.examples)
    assert "1.mp4: split train, planned for val" in told and "4.mp4: 3000 bytes, planned with 2000" in told
    assert "2.mp4: labels 0,1, planned with 0" in told
    fresh = {(v.uri, v.start): (v.labels, v.split) for v in new.videos()}
    assert fresh == {("6.mp4", None): ((0,), "train"), ("7.mp4", None): ((2,), "val"), ("3.mp4", 1.0): ((1,), "train")}
    assert new.counts == {"train": 2, "val": 1}
    # 0.mp4 3-5 is for validation, but the whole of it is in the training list, and planned for that.
    assert new.left_out == {"changed": 3, "leak": 1}
    assert any("kept 3 videos as they were planned" in note for note in new.notes)
    assert {one["where"].rpartition(", ")[2] for one in new.refusals()} == {"line 3", "line 4", "line 6", "line 9"}
    again = manifest_of(tmp_path, now, files, classes=new.classes)
    rest = again.remove_planned([*planned, *new.videos()])
    assert list(again.videos()) == [] and (rest.same, rest.changed, rest.gone) == (5, 3, 1)


def test_a_new_stretch_goes_where_its_video_is_planned(tmp_path: Path) -> None:
    files = [(f"{n}.mp4", 2000) for n in range(2)]
    old = manifest_of(tmp_path, [f"{n}.mp4,x,,0,1" for n in range(2)], files, validation=0.01)
    assert old.counts == {"train": 1, "val": 1}  # one crossed over
    planned = list(old.videos())
    files = [(f"{n}.mp4", 2000) for n in range(300)]
    lines = [f"{n}.mp4,x,,{s},{s + 1}" for n in range(300) for s in (0, 5)]
    new = manifest_of(tmp_path, lines, files, validation=0.01)
    compared = new.remove_planned(planned)
    assert compared.same == 2 and compared.changed == 0
    sides = {v.uri: v.split for v in planned}
    assert {v.uri: v.split for v in new.videos() if v.uri in sides} == sides
    keys = [(v.split, identity_digest(v.uri.encode(), v.start, v.end)) for v in new.videos()]
    assert keys == sorted(keys) and len(keys) == 598
    lines = ["0.mp4,x,train,0,1", "0.mp4,x,train,5,6", "1.mp4,x,train,5,6", "2.mp4,x,val,,"]
    given_split = manifest_of(tmp_path, lines, files)
    given_split.remove_planned([Video("0.mp4", (0,), "train", 0.0, 1.0), Video("1.mp4", (0,), "val", 0.0, 1.0)])
    assert [v.uri for v in given_split.videos()] == ["0.mp4", "2.mp4"] and given_split.left_out == {"leak": 1}


def test_a_manifest_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "temporary"))
    with manifest_of(
        tmp_path, [f"{n}.mp4,x,,," for n in range(999)], [(f"{n}.mp4", 1) for n in range(999)]
    ) as manifest:
        assert sum(1 for _ in manifest.videos()) == 999
    assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(Exception, match="closed"):
        list(manifest.videos())


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    held = CorpusDatabase()
    held.db.execute("PRAGMA max_page_count=20")
    book = LabelEncoder("names", None, "x")
    rows_ = (Row(f"{n}.mp4", ("x",), bytes=1) for n in range(10_000))
    with pytest.raises(UserError, match=r"does not fit on the disk(.|\n)*TMPDIR"):
        held.add_list(CorpusList("x", "line", rows_), book, None, from_listing=True)


def test_a_label_for_every_video_is_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharding.corpora.entries.labels.MOST", 100)
    book = LabelEncoder("names", None, "x")
    with pytest.raises(UserError, match="more than 100 labels"):
        for n in range(102):
            book.encode((f"title {n}",))


def test_the_benchmark_plans_all_that_has_a_file() -> None:
    result = planning.run(3000)
    assert result["videos"] + result["missing"] == 3000 and result["missing"] == 210
    assert result["jobs"] == 123
    assert "most memory held" in planning.table(result)


MEMORY = """
import resource, sys
from pathlib import Path
from tests.benchmarks import planning
planning.measure(Path(sys.argv[1]), int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """With a small cache, a list of ten times the lines takes hardly more."""
    held = []
    program = f"import sharding.corpora.corpus_db as g; g.CACHE = {2 * 2**20}\n" + MEMORY
    for lines in (4_000, 40_000):
        folder = tmp_path / str(lines)
        folder.mkdir()
        planning.write_lists(folder, lines)
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), str(lines)], capture_output=True, text=True, check=True
        )
        held.append(int(done.stdout) * 1024)
    assert held[1] - held[0] < 8e6, held
    assert gather.CACHE > 2 * 2**20
