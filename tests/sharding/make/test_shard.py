"""A corpus becomes a store: whole shards or none, told failures, the same bytes every time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset

from sharding.base.errors import UserError
from sharding.corpora.manifest import Video
from sharding.format import index, record
from sharding.format.failures import read_failures, shards_with_failures
from sharding.inspect.summary import summary
from sharding.inspect.verify import verify
from sharding.make.prepare import prepare
from sharding.make.shard import ShardProgress, ShardSettings, WorkerSettings, make_shard
from sharding.make.tar_parts import sample_key
from sharding.storage.store import Store, open_store
from tests.support.commands import ROOT
from tests.support.stores import READING, SETTINGS, content, make, shard
from tests.support.videos import failing_transcodes as failing


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def changed(**values: object) -> ShardSettings:
    return ShardSettings.model_validate({**SETTINGS.model_dump(), **values})


def test_no_process_that_shards_loads_torch(corpus: Path, tmp_path: Path) -> None:
    """webdataset would: two seconds of each process, and 200 MB."""
    code = """
import sys
from sharding.storage.store import open_store
from tests.support.stores import shard
shard(sys.argv[1], open_store(sys.argv[2]))
print([name for name in sys.modules if name.partition(".")[0] == "torch"])
import torch, webdataset
assert issubclass(webdataset.WebDataset, torch.utils.data.IterableDataset)
"""
    words = [sys.executable, "-c", code, str(corpus), str(tmp_path / "store")]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
    assert content(open_store(str(tmp_path / "store")))


def test_the_store_as_the_format_says(corpus: Path, store: Store) -> None:
    prepared = shard(corpus, store)
    assert prepared.planned_count == prepared.remaining_count >= 2 and prepared.remaining_videos == 8
    current = index.current_index(store)
    assert current.classes == ["calm", "lively"] and current.failures == {"empty": 1, "not_video": 1}
    assert sum(split.samples for split in current.splits.values()) == 6
    assert sum(split.frames for split in current.splits.values()) == 120
    assert sum(split.seconds for split in current.splits.values()) == pytest.approx(6 * 0.8)
    assert current.lengths == {"0.5": 6} and set(current.splits) == {"train", "val"}
    seen = set()
    for split, job in record.list_records(store):
        table = record.read_record(store, split, job)
        assert table.schema.remove_metadata() == record.RECORD
        meta = record.record_meta(table.schema)
        assert meta == record.read_meta(store, split, job)
        assert (meta["job"], meta["split"], meta["videos"]) == (job, split, table.num_rows)
        for row in table.to_pylist():
            part = meta["parts"][row["part"]]
            payload = store.get_range(part["path"], row["offset"], row["offset"] + row["size"])
            assert payload[4:8] == b"ftyp" and row["key"] == sample_key(Video(row["uri"], (), ""), 0, False)
            assert current.classes[row["labels"][0]] == row["uri"].split("/")[0]
            assert (row["segment"], row["codec"], row["flow"]) == (0, "h264", None)
            seen.add(row["uri"])
    assert len(seen) == 6
    for listed in current.parts:
        assert sum(listed.label_histogram.values()) == listed.samples
        assert store.size(listed.path) == listed.bytes


def test_parts_open_with_ordinary_tools(corpus: Path, store: Store) -> None:
    shard(corpus, store)
    keys = []
    for part in index.current_index(store).parts:
        path = str(Path(store.url) / part.path)
        listing = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True).stdout.split()
        assert len(listing) == 2 * part.samples
        for sample in webdataset.WebDataset(path, shardshuffle=False, empty_check=False):
            assert sample["mp4"][4:8] == b"ftyp"
            about = json.loads(sample["json"])
            assert sample["__key__"] == sample_key(Video(about["uri"], (), ""), 0, False) and about["frames"] == 20
            keys.append(sample["__key__"])
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uname, m.mode) for m in tar} == {(0, "reelscale", 0o444)}
    assert len(set(keys)) == 6


def test_two_runs_give_the_same_bytes_and_a_third_does_nothing(corpus: Path, store: Store, tmp_path: Path) -> None:
    first = shard(corpus, store)
    other = open_store(str(tmp_path / "other"))
    shard(corpus, other)
    assert content(store) == content(other)
    again = shard(corpus, store)
    assert not again.remaining_count and not list(again.remaining_jobs()) and content(store) == content(other)
    job, root = next(first.remaining_jobs())
    result = make_shard(job, root, store, SETTINGS)
    assert result.made_by_another and content(store) == content(other)


def test_what_a_worker_tells(corpus: Path, store: Store) -> None:
    job, root = next(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    told: list[ShardProgress] = []
    last = make_shard(job, root, store, SETTINGS, on_progress=told.append)
    assert [progress.videos for progress in told] == list(range(1, len(job.videos) + 1))
    assert last.done and last.videos == len(job.videos) == last.samples + sum(last.failures.values())
    assert last.frames == 20 * last.samples and last.bytes_out == sum(
        store.size(part["path"]) for part in record.read_meta(store, job.split, job.id)["parts"]
    )
    assert last.bytes_in >= sum((corpus / video.uri).stat().st_size for video in job.videos if "piece" in video.uri)


def test_a_slow_worker_leaves_what_a_faster_one_made(corpus: Path, store: Store) -> None:
    jobs = list(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    job, root = next(one for one in jobs if sum("piece" in video.uri for video in one[0].videos) > 1)
    gone = [corpus / video.uri for video in job.videos if "piece" in video.uri][-1]

    def meanwhile(progress: ShardProgress) -> None:
        if progress.videos == 1:  # another worker, which for a moment cannot read one of the videos
            hidden = gone.rename(gone.with_suffix(".hidden"))
            assert make_shard(job, root, store, SETTINGS).failures
            hidden.rename(gone)

    last = make_shard(job, root, store, SETTINGS, on_progress=meanwhile)
    assert last.made_by_another and last.done
    found = verify(store, "none")
    assert found.intact, found.damages
    lines = read_failures(store, [(job.split, job.id)], shards_with_failures(store))
    assert str(gone.relative_to(corpus)) in {line["uri"] for line in lines}


def test_failures_are_told(corpus: Path, store: Store) -> None:
    shard(corpus, store)
    seen = summary(store)
    assert json.loads(json.dumps(seen)) == seen
    assert {failure["uri"]: failure["reason"] for failure in seen["failure_examples"]} == {
        "calm/empty.mp4": "the file is empty",
        "lively/note.mp4": "not a video file (its bytes are plain text)",
    }
    assert seen["failures"] == {"empty": 1, "not_video": 1} and seen["samples"] == seen["videos"] == 6
    assert seen["settings"]["encode"]["short_edge"] == 32
    assert sum(sum(counts.values()) for counts in seen["label_histogram"].values()) == 6
    assert seen["lengths"] == [{"from": 0.5, "to": 1.0, "samples": 6}]


def test_an_unexpected_error_ends_the_video_not_the_shard(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.make.shard.transcode_with_cost", failing.by_zero)
    shard(corpus, store)
    found = summary(store)
    assert found["samples"] == 0 and found["failures"] == {"unexpected": 8}
    assert "ZeroDivisionError: of all things" in found["failure_examples"][0]["detail"]


def test_a_video_too_large_for_the_memory_is_listed(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.make.shard.transcode_with_cost", failing.too_large)
    shard(corpus, store)
    found = summary(store)
    assert found["failures"] == {"crashed": 8} and "memory" in found["failure_examples"][0]["reason"]


def test_the_child_that_decodes_loads_no_more_than_that_takes(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started anew after every crash, and there is one a worker."""
    monkeypatch.setattr("sharding.make.shard.transcode_with_cost", failing.naming_its_modules)
    job, root = next(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    make_shard(job, root, store, SETTINGS, WorkerSettings(stall_seconds=61.0))  # a child of its own
    index.merge(store)
    assert {failure["reason"] for failure in summary(store)["failure_examples"]} == {"none"}


@pytest.mark.slow
def test_videos_that_crash_or_hang_the_decoder_are_listed(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("crash", "hang"):
        shutil.copyfile(corpus / "calm" / "piece0.mp4", corpus / "calm" / f"{name}.mp4")
    monkeypatch.setattr("sharding.make.shard.transcode_with_cost", failing.poisonous)
    for job, root in prepare(str(corpus), store, SETTINGS, READING).remaining_jobs():
        make_shard(job, root, store, SETTINGS, WorkerSettings(stall_seconds=4.0))
    index.merge(store)
    tree = summary(store)
    assert tree["samples"] == 6
    assert tree["failures"] == {"crashed": 1, "empty": 1, "not_video": 1, "stalled": 1}
    told = {failure["uri"]: failure for failure in tree["failure_examples"]}
    assert told["calm/crash.mp4"]["kind"] == "crashed" and "SIGSEGV" in told["calm/crash.mp4"]["detail"]
    assert told["calm/hang.mp4"]["kind"] == "stalled"


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_full_local_disk_ends_the_job(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real = webdataset.TarWriter.close

    def fail(writer: webdataset.TarWriter, *_: object) -> None:
        real(writer)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(webdataset.TarWriter, method, fail)
    job, root = next(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    with pytest.raises(UserError, match="the shard cannot be written: No space left on device") as caught:
        make_shard(job, root, store, SETTINGS)
    assert "TMPDIR" in caught.value.remedy and not record.list_records(store)


@pytest.mark.parametrize("limit", [{"part_bytes": 1}, {"part_samples": 1}])
def test_small_parts_are_many(corpus: Path, store: Store, limit: dict[str, int]) -> None:
    shard(corpus, store, changed(videos_per_shard=100, **limit))
    current = index.current_index(store)
    assert [part.samples for part in current.parts] == [1] * 6
    train = [part.path for part in current.parts if part.split == "train"]
    sums = [hashlib.sha256(store.get(path)).hexdigest()[:16] for path in train]
    assert train == [f"train/g0-000000-{number:02d}-{content}.tar" for number, content in enumerate(sums)]


def test_parts_of_two_samples(corpus: Path, store: Store) -> None:
    shard(corpus, store, changed(videos_per_shard=100, part_samples=2))
    for split in index.current_index(store).splits:
        sizes = [part.samples for part in index.current_index(store).parts if part.split == split]
        assert sizes[:-1] == [2] * (len(sizes) - 1) and 1 <= sizes[-1] <= 2


def test_segments_are_samples_of_their_own(tmp_path: Path, store: Store) -> None:
    footage = Path(__file__).parents[2] / "data" / "footage" / "bikes.mp4"
    (tmp_path / "corpus" / "street").mkdir(parents=True)
    shutil.copyfile(footage, tmp_path / "corpus" / "street" / "bikes.mp4")
    segments = {"seconds": 2.0, "per_video": 3}
    shard(tmp_path / "corpus", store, changed(segments=segments))
    ((split, job),) = record.list_records(store)
    rows = record.read_record(store, split, job).to_pylist()
    assert [row["segment"] for row in rows] == [0, 1, 2] and len({row["key"] for row in rows}) == 3
    assert all(1.5 < row["end"] - row["start"] < 2.5 for row in rows)
    assert [row["start"] for row in rows] == sorted(row["start"] for row in rows)
    meta = record.read_meta(store, split, job)
    assert (meta["videos"], meta["samples"], meta["lengths"]) == (1, 3, {"2": 3})


def test_reading_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards here"):
        index.current_index(open_store(str(tmp_path)))


@pytest.mark.slow
def test_killed_in_mid_shard_it_leaves_no_record_and_the_next_run_ends_it(
    corpus: Path, store: Store, tmp_path: Path
) -> None:
    for number in range(40):
        shutil.copyfile(corpus / "calm" / "piece0.mp4", corpus / "calm" / f"more{number}.mp4")
    settings = changed(videos_per_shard=100)
    code = (
        "from sharding.make.prepare import prepare\n"
        "from sharding.make.shard import *\n"
        "from sharding.storage.store import open_store\n"
        "from tests.support.stores import READING\n"
        f"settings = ShardSettings.model_validate_json({settings.model_dump_json()!r})\n"
        f"prepared = prepare({str(corpus)!r}, open_store({store.url!r}), settings, READING)\n"
        "for job, root in prepared.remaining_jobs():\n"
        "    make_shard(job, root, prepared.store, settings, on_progress=lambda _: print('one', flush=True))\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": str(temporary)}
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    assert worker.stdout is not None
    assert [worker.stdout.readline() for _ in range(3)] == ["one\n"] * 3
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    assert store.list("train/") == [] and record.list_records(store) == []
    shard(corpus, store, settings)
    untouched = open_store(str(tmp_path / "untouched"))
    shard(corpus, untouched, settings)
    assert content(store) == content(untouched)


@pytest.mark.slow
def test_the_same_store_on_s3(
    corpus: Path, store: Store, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, bucket = s3
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    remote = open_store(f"s3://{bucket}/shards-{time.time_ns()}")
    shard(corpus, remote)
    shard(corpus, store)
    assert content(remote) == content(store)
    for path in corpus.glob("*/*"):
        open_store(f"s3://{bucket}/corpus").put_file(path.relative_to(corpus).as_posix(), path)
    from_s3 = open_store(f"s3://{bucket}/again-{time.time_ns()}")
    prepared = prepare(f"s3://{bucket}/corpus", from_s3, SETTINGS, READING)
    assert [progress.made_by_another for progress in make(prepared)] == [False] * prepared.planned_count
    ours = {path: data for path, data in content(store).items() if path.endswith(".tar")}
    assert {path: data for path, data in content(from_s3).items() if path.endswith(".tar")} == ours
