"""Which failures are a video's own, which are the machine's, and names that are not UTF-8."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from pathlib import Path

import pytest

from sharding.base.errors import UserError
from sharding.corpora.manifest import Video
from sharding.format import record
from sharding.inspect.summary import summary
from sharding.make.prepare import Prepared, prepare
from sharding.make.tar_parts import sample_key
from sharding.storage.store import Store, open_store
from tests.support.stores import READING, SETTINGS, make
from tests.support.videos import failing_transcodes as failing

# The kernel answers its first byte with "Input/output error".
UNREADABLE = "/proc/self/mem"


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def shard(corpus: Path | str, store: Store, prepared: Prepared | None = None) -> None:
    make(prepared or prepare(str(corpus), store, SETTINGS, READING))


def failures(store: Store) -> dict[str, dict]:
    return {failure["uri"]: failure for failure in summary(store)["failure_examples"]}


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder", "empty class folders"])
def test_a_corpus_that_is_not_here_ends_the_job(corpus: Path, store: Store, scheme: str, left: str) -> None:
    address = f"{scheme}{corpus}"
    prepared = prepare(address, store, SETTINGS, READING)
    corpus.rename(corpus.with_name("elsewhere"))
    if left != "nothing":
        corpus.mkdir()
    if left == "empty class folders":
        (corpus / "calm").mkdir()
        (corpus / "lively").mkdir()
    with pytest.raises(UserError, match="the corpus cannot be read here") as caught:
        shard(address, store, prepared)
    assert caught.value.where.startswith(str(corpus)) and "every machine" in caught.value.remedy
    assert record.list_records(store) == [] and failures(store) == {}
    if corpus.exists():
        shutil.rmtree(corpus)
    corpus.with_name("elsewhere").rename(corpus)
    shard(address, store)
    assert summary(store)["samples"] == 6


def test_files_that_are_gone_are_failures(corpus: Path, store: Store) -> None:
    (corpus / "calm" / "dangling.mp4").symlink_to(corpus / "nowhere.mp4")
    prepared = prepare(str(corpus), store, SETTINGS, READING)
    (corpus / "calm" / "piece0.mp4").unlink()
    shard(corpus, store, prepared)
    told = failures(store)
    for uri in ("calm/dangling.mp4", "calm/piece0.mp4"):
        assert (told[uri]["reason"], told[uri]["detail"]) == ("the file cannot be read", "No such file or directory")
    assert summary(store)["samples"] == 5


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_might_never_end_is_a_failure(corpus: Path, store: Store, kind: str) -> None:
    """Neither the child nor, when it asks whether the disk is at fault, this process may read it."""
    os.mkfifo(corpus / "pipe")
    (corpus / "calm" / "endless.mp4").symlink_to(corpus / "pipe" if kind == "pipe" else "/dev/zero")
    shard(corpus, store)
    assert failures(store)["calm/endless.mp4"]["kind"] == "unreadable"
    assert summary(store)["samples"] == 6


def test_a_disk_that_does_not_answer_ends_the_job(corpus: Path, store: Store) -> None:
    (corpus / "calm" / "lost.mp4").symlink_to(UNREADABLE)
    with pytest.raises(UserError, match="the corpus cannot be read here: Input/output error") as caught:
        shard(corpus, store)
    assert caught.value.where == f"{corpus}/calm/lost.mp4"
    assert "calm/lost.mp4" not in failures(store)


def test_what_ffmpeg_takes_for_a_cut_file_is_read_again_without_it(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "calm" / "lost.mp4").symlink_to(UNREADABLE)
    monkeypatch.setattr("sharding.make.shard.transcode_with_cost", failing.missing_frames)
    with pytest.raises(UserError, match="Input/output error"):
        shard(corpus, store)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_an_error_of_the_machine_is_no_failure_though_it_passed(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("sharding.make.shard.transcode_with_cost", functools.partial(failing.of_the_machine, number))
    with pytest.raises(UserError, match=os.strerror(number)):
        shard(corpus, store)
    assert record.list_records(store) == []


def test_names_that_are_not_utf8(corpus: Path, store: Store) -> None:
    raw = {name: os.fsdecode(b"\xe9t\xe9/" + name) for name in (b"caf\xe9.mp4", b"bad\xe9.mp4", b"lost\xe9.mp4")}
    (corpus / os.fsdecode(b"\xe9t\xe9")).mkdir()
    shutil.copyfile(corpus / "calm" / "piece0.mp4", corpus / raw[b"caf\xe9.mp4"])
    (corpus / raw[b"bad\xe9.mp4"]).write_bytes(b"\0\1\2\3" * 999)
    (corpus / raw[b"lost\xe9.mp4"]).symlink_to("nowhere")
    (corpus / os.fsdecode(b"note\xe9.txt")).write_text("not a video")
    prepared = prepare(str(corpus), store, SETTINGS, READING)
    shard(corpus, store, prepared)
    rows = [row for found in record.list_records(store) for row in record.read_record(store, *found).to_pylist()]
    good = next(row for row in rows if "caf" in row["uri"])
    assert good["uri"] == r"\udce9t\udce9/caf\udce9.mp4" and good["key"] == sample_key(
        Video(raw[b"caf\xe9.mp4"], (), ""), 0, False
    )
    shown = summary(store)
    failed = set(failures(store))
    assert failed >= {r"\udce9t\udce9/bad\udce9.mp4", r"\udce9t\udce9/lost\udce9.mp4"}
    assert r"\udce9t\udce9" in shown["classes"] and any(r"note\udce9.txt" in note for note in prepared.notes)
    for text in (*prepared.notes, json.dumps(shown, ensure_ascii=False)):
        text.encode("utf-8")
    assert not prepare(str(corpus), store, SETTINGS, READING).remaining_count
