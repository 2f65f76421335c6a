"""A corpus becomes a store: whole shards or none, told failures, the same bytes every time."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset
from prometheus_client import REGISTRY

from sharding import index, record
from sharding.errors import UserError
from sharding.parts import sample_key
from sharding.shard import Prepared, ShardSettings, finish, make_shard, prepare
from sharding.store import Store, open_store

SETTINGS = ShardSettings.model_validate(
    {"videos_per_shard": 4, "validation": 0.3, "encode": {"short_edge": 32, "preset": "ultrafast"}}
)


def shard(corpus: Path, store: Store, settings: ShardSettings = SETTINGS) -> Prepared:
    prepared = prepare(str(corpus), store, settings)
    for job in prepared.todo:
        make_shard(pickle.loads(pickle.dumps(job)), str(corpus), store, settings)
    finish(store)
    return prepared


def content(store: Store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.list("")}


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_the_store_as_the_format_says(corpus: Path, store: Store) -> None:
    before = REGISTRY.get_sample_value("reelscale_shard_samples_total") or 0
    prepared = shard(corpus, store)
    assert prepared.classes == ("calm", "lively") and len(prepared.jobs) == len(prepared.todo) >= 2
    assert "ignored 1 files" in prepared.notes[0]
    current = index.current_index(store)
    assert current.classes == ["calm", "lively"] and current.failures == 2
    assert sum(split.samples for split in current.splits.values()) == 6
    assert set(current.splits) == {"train", "val"}
    assert (REGISTRY.get_sample_value("reelscale_shard_samples_total") or 0) - before == 6
    seen = set()
    for split, job in record.list_records(store):
        table = index.read_record(store, split, job)
        assert table.schema.remove_metadata() == record.RECORD
        meta = record.record_meta(table)
        assert (meta["job"], meta["split"], meta["videos"]) == (job, split, table.num_rows)
        for row in table.to_pylist():
            part = meta["parts"][row["part"]]
            payload = store.get_range(part["path"], row["offset"], row["offset"] + row["size"])
            assert payload[4:8] == b"ftyp" and row["key"] == sample_key(row["uri"])
            assert current.classes[row["labels"][0]] == row["uri"].split("/")[0]
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
            assert sample["__key__"] == sample_key(about["uri"]) and about["frames"] == 20
            keys.append(sample["__key__"])
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uname, m.mode) for m in tar} == {(0, "reelscale", 0o444)}
    assert len(set(keys)) == 6


def test_two_runs_give_the_same_bytes_and_a_third_does_nothing(corpus: Path, store: Store, tmp_path: Path) -> None:
    shard(corpus, store)
    other = open_store(str(tmp_path / "other"))
    shard(corpus, other)
    assert content(store) == content(other)
    again = shard(corpus, store)
    assert not again.todo and content(store) == content(other)
    result = make_shard(again.jobs[0], str(corpus), store, SETTINGS)
    assert result.already and content(store) == content(other)


def test_failures_are_told(corpus: Path, store: Store) -> None:
    shard(corpus, store)
    told = {failure["uri"]: failure["reason"] for failure in index.read_failures(store)}
    assert told == {
        "calm/empty.mp4": "the file is empty",
        "lively/note.mp4": "not a video file (its bytes are plain text)",
    }
    seen = index.inspect(store)
    assert json.loads(json.dumps(seen)) == seen
    assert seen["samples"] == seen["videos"] == 6 and len(seen["failures"]) == 2
    assert seen["settings"]["encode"]["short_edge"] == 32


def test_an_unexpected_error_ends_the_video_not_the_shard(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("sharding.shard.transcode", fail)
    prepared = prepare(str(corpus), store, SETTINGS)
    result = make_shard(prepared.todo[0], str(corpus), store, SETTINGS)
    assert result.samples == 0 and result.failures == len(prepared.todo[0].videos)
    assert "ZeroDivisionError: of all things" in index.read_failures(store)[0]["detail"]


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_full_local_disk_ends_the_job(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real = webdataset.TarWriter.close

    def fail(writer: webdataset.TarWriter, *_: object) -> None:
        real(writer)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(webdataset.TarWriter, method, fail)
    job = prepare(str(corpus), store, SETTINGS).todo[0]
    with pytest.raises(UserError, match="the shard cannot be written: No space left on device") as caught:
        make_shard(job, str(corpus), store, SETTINGS)
    assert "TMPDIR" in caught.value.remedy and not record.list_records(store)


def test_small_parts_are_many(corpus: Path, store: Store) -> None:
    shard(corpus, store, SETTINGS.model_copy(update={"part_bytes": 1, "videos_per_shard": 100}))
    current = index.current_index(store)
    assert [part.samples for part in current.parts] == [1] * 6
    train = [part.path for part in current.parts if part.split == "train"]
    assert train == [f"train/g0-000000-{number:02d}.tar" for number in range(len(train))]


def test_another_corpus_or_other_settings_are_refused(corpus: Path, store: Store) -> None:
    shard(corpus, store)
    before = content(store)
    other = ShardSettings.model_validate({**SETTINGS.model_dump(), "encode": {"short_edge": 48}})
    with pytest.raises(UserError, match=r"settings.encode.short_edge: there 32, here 48") as caught:
        prepare(str(corpus), store, other)
    assert "another STORE" in caught.value.remedy
    (corpus / "calm" / "empty.mp4").unlink()
    with pytest.raises(UserError, match="videos: there 8, here 7"):
        prepare(str(corpus), store, SETTINGS)
    assert content(store) == before


def test_no_good_video_at_all(corpus: Path, store: Store) -> None:
    for path in corpus.glob("*/piece*.mp4"):
        path.unlink()
    with pytest.raises(UserError, match=r"no good video in the corpus:\n.*calm/empty.mp4: the file is empty"):
        shard(corpus, store)
    assert record.list_records(store)
    with pytest.raises(UserError, match=r"no good video in the corpus:\n.*calm/empty.mp4: the file is empty") as caught:
        index.inspect(store)
    assert "same command again" in caught.value.remedy


def test_videos_mended_after_not_one_was_good_are_tried_anew(corpus: Path, store: Store, tmp_path: Path) -> None:
    good = (corpus / "calm" / "piece0.mp4").read_bytes()
    for path in corpus.glob("*/piece*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no good video"):
        shard(corpus, store)
    with pytest.raises(UserError, match="no good video"):
        shard(corpus, store)
    for path in corpus.glob("*/piece*.mp4"):
        path.write_bytes(good)
    (corpus / "calm" / "empty.mp4").rename(corpus / "calm" / "other.mp4")
    assert "tried anew" in shard(corpus, store).notes[-1]
    assert index.inspect(store)["samples"] == 6 and len(index.read_failures(store)) == 2
    untouched = open_store(str(tmp_path / "untouched"))
    shard(corpus, untouched)
    assert index.current_index(store).digest == index.current_index(untouched).digest
    assert not prepare(str(corpus), store, SETTINGS).todo


def test_a_single_video_mended_moves_to_another_split_and_is_tried_anew(
    tmp_path: Path, pieces: list[Path], store: Store
) -> None:
    for number in range(10):  # a broken file of a few bytes may stand in validation; a whole one is trained on
        corpus, single = tmp_path / f"corpus{number}", open_store(f"{store.url}-{number}")
        (corpus / "calm").mkdir(parents=True)
        (corpus / "calm" / f"{number}.mp4").write_text("not yet")
        settings = SETTINGS.model_copy(update={"validation": 0.9})
        with pytest.raises(UserError, match="no good video"):
            shard(corpus, single, settings)
        shutil.copyfile(pieces[0], corpus / "calm" / f"{number}.mp4")
        shard(corpus, single, settings)
        assert index.inspect(single)["splits"]["train"]["samples"] == 1 and index.read_failures(single) == []


def test_shards_without_a_sample_are_kept_until_sharding_ends(corpus: Path, store: Store) -> None:
    for path in corpus.glob("*/piece*.mp4"):
        path.write_bytes(b"")
    prepared = prepare(str(corpus), store, SETTINGS)
    make_shard(prepared.todo[0], str(corpus), store, SETTINGS)
    assert len(prepare(str(corpus), store, SETTINGS).todo) == len(prepared.todo) - 1
    with pytest.raises(UserError, match="sharding did not finish"):
        index.current_index(store)


def test_the_same_command_plans_the_same_shards(corpus: Path, store: Store) -> None:
    settings = SETTINGS.model_copy(update={"videos_per_shard": None})
    jobs = shard(corpus, store, settings).jobs
    assert [len(job.videos) for job in jobs] == [1] * 8
    again = prepare(str(corpus), store, settings)
    assert again.jobs == jobs and not again.todo
    shutil.copyfile(corpus / "calm" / "piece0.mp4", corpus / "calm" / "more.mp4")
    with pytest.raises(UserError, match="videos: there 8, here 9"):
        prepare(str(corpus), store, settings)


def test_reading_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards here"):
        index.current_index(open_store(str(tmp_path)))


def test_killed_in_mid_shard_it_leaves_no_record_and_the_next_run_ends_it(
    corpus: Path, store: Store, tmp_path: Path
) -> None:
    for number in range(40):
        shutil.copyfile(corpus / "calm" / "piece0.mp4", corpus / "calm" / f"more{number}.mp4")
    settings = SETTINGS.model_copy(update={"videos_per_shard": 100})
    code = (
        "import sys, sharding.shard as s; from sharding.store import open_store\n"
        f"settings = s.ShardSettings.model_validate_json({settings.model_dump_json()!r})\n"
        f"corpus, store = {str(corpus)!r}, open_store({store.url!r})\n"
        "real = s.transcode\n"
        "def told(*a):\n    clip = real(*a); print('one', flush=True); return clip\n"
        "s.transcode = told\n"
        "[s.make_shard(job, corpus, store, settings) for job in s.prepare(corpus, store, settings).todo]\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)}
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
    for path in corpus.glob("*/*.mp4"):
        open_store(f"s3://{bucket}/corpus").put_file(path.relative_to(corpus).as_posix(), path)
    from_s3 = open_store(f"s3://{bucket}/again-{time.time_ns()}")
    prepared = prepare(f"s3://{bucket}/corpus", from_s3, SETTINGS)
    assert make_shard(prepared.todo[0], f"s3://{bucket}/corpus", from_s3, SETTINGS).samples > 0
