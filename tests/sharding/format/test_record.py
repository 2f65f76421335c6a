"""Records and indices as Parquet: read without threads, and every damage told."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.format import index, record
from sharding.inspect.summary import concealed_words, summary
from sharding.inspect.verify import verify
from sharding.make.prepare import prepare, stored_settings
from sharding.make.shard import make_shard
from sharding.storage.store import Store, open_store
from tests.support.stores import READING, SETTINGS, part_of, shard


@pytest.fixture()
def made(corpus: Path, tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"))
    shard(corpus, store)
    return store


def damaged(path: Path, every: int, last: int | None = None) -> Iterator[None]:
    """The file with one byte changed, once for each `every` bytes of it (its `last` ones); at the end as it was."""
    whole = path.read_bytes()
    for place in range(0 if last is None else len(whole) - last, len(whole), every):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        yield
    path.write_bytes(whole)


def test_reading_and_writing_start_no_thread(made: Store) -> None:
    """Threads that live when the interpreter ends abort it now and then."""
    program = f"""
import os
from sharding.format import index
from sharding.format import record
from sharding.storage.store import open_store
store = open_store({made.url!r})
before = len(os.listdir("/proc/self/task"))
tables = [record.read_record(store, *shard) for shard in record.list_records(store)]
index.current_index(store)
record.from_parquet(record.to_parquet(tables[0]), ["key", "labels"])
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_a_damaged_record_is_told(made: Store) -> None:
    split, job = record.list_records(made)[0]
    whole = record.read_record(made, split, job)
    noticed = 0
    for _ in damaged(Path(made.url) / record.record_path(split, job), every=97):
        try:
            assert record.read_record(made, split, job).equals(whole)  # the byte was part of no value
        except UserError as error:
            assert "a shard's record is damaged" in error.what and error.where.endswith(f"{job}.parquet")
            noticed += 1
    assert noticed > 50


def test_a_damaged_end_of_a_record_is_told_without_the_rest(made: Store) -> None:
    split, job = record.list_records(made)[0]
    meta = record.read_meta(made, split, job)
    noticed = 0
    for _ in damaged(Path(made.url) / record.record_path(split, job), every=13, last=4000):
        try:
            assert record.read_meta(made, split, job) == meta  # the byte was part of no value of it
        except UserError as error:
            assert "a shard's record is damaged" in error.what and error.where.endswith(f"{job}.parquet")
            noticed += 1
    assert noticed > 30


def test_metadata_longer_than_what_is_read_at_first(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    meta = {"format": record.FORMAT, "histogram": {str(number): number for number in range(20_000)}}
    assert record.write_record(store, "train", "g0-000000", [], meta)
    assert store.size("train/g0-000000.parquet") > 2**17
    assert record.read_meta(store, "train", "g0-000000") == meta


def test_a_damaged_index_is_told(made: Store) -> None:
    whole = index.current_index(made)
    path = Path(made.url) / "index" / f"{whole.version}.parquet"
    noticed = 0
    for _ in damaged(path, every=17):
        try:
            assert index.current_index(made) == whole
        except UserError as error:
            assert "the store's index is damaged" in error.what and error.where == str(path)
            noticed += 1
    assert noticed > 50


def test_columns_of_another_type_are_told(made: Store) -> None:
    """A byte of a file's footer that no checksum covers makes text of it bytes."""
    version = index.current_index(made).version
    split, job = record.list_records(made)[0]
    for path, what in ((f"index/{version}.parquet", "index"), (record.record_path(split, job), "record")):
        file = Path(made.url) / path
        whole = file.read_bytes()
        table = record.from_parquet(whole)
        schema = pa.schema(
            [field.with_type(pa.binary()) if field.type == pa.string() else field for field in table.schema],
            metadata=table.schema.metadata,
        )
        file.write_bytes(record.to_parquet(table.cast(schema)))
        with pytest.raises(UserError, match=f"{what} is damaged"):
            index.current_index(made) if what == "index" else record.read_record(made, split, job)
        file.write_bytes(whole)
    assert index.current_index(made).version == version


def test_a_cut_index_is_told_and_made_anew_once_deleted(made: Store) -> None:
    whole = index.current_index(made)
    path = Path(made.url) / "index" / f"{whole.version}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    for ask in (index.current_index, index.merge):
        with pytest.raises(UserError, match="the store's index is damaged") as caught:
            ask(made)
        assert "delete it" in caught.value.remedy
    path.unlink()
    index.merge(made)
    assert index.current_index(made) == whole


def test_a_merge_that_saw_less_does_not_become_the_newest(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    jobs = list(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    make_shard(*jobs[0], store, SETTINGS)
    real = index.list_records

    def slow(store: Store) -> list[tuple[str, str]]:
        seen = real(store)
        monkeypatch.setattr(index, "list_records", real)
        for job in jobs[1:]:  # another command ends before this one has read what it saw
            make_shard(*job, store, SETTINGS)
        index.merge(store)
        return seen

    monkeypatch.setattr(index, "list_records", slow)
    merged = index.merge(store)
    assert merged == index.current_index(store) and len({part.job for part in merged.parts}) == len(jobs)


def test_two_merges_that_take_the_same_number_agree_in_the_end(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    jobs = list(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    make_shard(*jobs[0], store, SETTINGS)
    real = index.to_parquet

    def slow(table: object) -> bytes:
        monkeypatch.setattr(index, "to_parquet", real)
        for job in jobs[1:]:
            make_shard(*job, store, SETTINGS)
        index.merge(store)
        return real(table)

    monkeypatch.setattr(index, "to_parquet", slow)
    merged = index.merge(store)
    assert merged == index.current_index(store) and len({part.job for part in merged.parts}) == len(jobs)


@pytest.mark.parametrize(
    "tree",
    [
        [], None, 2, "head", {"settings": None}, {"settings": []}, {"classes": None}, {"classes": {"a": 1}},
        {"classes": [1]}, {"settings_digest": None},
    ],
)  # fmt: skip
def test_a_head_of_another_form_is_told(made: Store, tree: Any) -> None:
    """Wherever it is read: `tree` instead of it, or in it, with null for what is to be missing."""
    whole = index.require_head(made)
    changed = {**whole, **tree} if isinstance(tree, dict) else tree
    if isinstance(tree, dict):
        changed = {name: value for name, value in changed.items() if value is not None}
    made.put(index.HEAD, json.dumps(changed).encode())
    for read in (index.read_head, index.current_index, index.merge, summary, stored_settings):
        with pytest.raises(UserError, match="the store's head is damaged") as caught:
            read(made)
        assert caught.value.where.endswith(index.HEAD)
    assert "head is damaged" in verify(made).damages[0].what


def test_settings_of_another_version_are_told(made: Store) -> None:
    whole = index.require_head(made)
    whole["settings"] |= {"colour": 3}
    made.put(index.HEAD, json.dumps(whole).encode())
    with pytest.raises(UserError, match="colour: there is no such setting") as caught:
        stored_settings(made)
    assert caught.value.where.endswith(index.HEAD) and "version of Reelscale" in caught.value.remedy


@given(
    st.dictionaries(st.text(), st.integers() | st.text()),
    st.lists(st.dictionaries(st.text(), st.integers() | st.text())),
)
def test_the_digest_of_an_index_is_that_of_its_json(meta: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    whole = json.dumps([meta, rows], sort_keys=True).encode()
    assert index._content_digest(meta, rows) == hashlib.sha256(whole).hexdigest()


def test_histograms_of_an_index_are_read_when_asked_for(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: dict[str, Counter[int]] = {}
    for split, job in record.list_records(made):
        for row in record.read_record(made, split, job).to_pylist():
            labels.setdefault(part_of(made, (split, job), row["part"]), Counter()).update(row["labels"])
    real, texts = json.loads, []
    monkeypatch.setattr(index.json, "loads", lambda text: (texts.append(text), real(text))[1])
    parts = index.current_index(made).parts
    assert len(texts) == 2  # the head's and the index' own
    assert {part.path: part.label_histogram for part in parts} == labels and len(texts) == 2 + len(parts)


def as_older_versions_made_it(store: Store) -> None:
    """Take from a store what older versions did not count: concealed damage."""
    for split, job in record.list_records(store):
        table = record.read_record(store, split, job)
        meta = record.record_meta(table.schema)
        del meta["concealed"]
        table = table.drop_columns(["concealed"])
        store.put(record.record_path(split, job), record.to_parquet(record.with_meta(table, meta)))
    shutil.rmtree(Path(store.url) / "index")
    index.merge(store)


def test_a_store_of_an_older_version_is_read_and_gone_on_with(corpus: Path, made: Store) -> None:
    assert summary(made)["concealed"] == {"frames": 0, "samples": 0, "unknown": 0}
    assert "maximum_concealed" not in made.get(index.HEAD).decode()  # older versions know no such setting
    as_older_versions_made_it(made)
    old = index.current_index(made)
    assert record.META in record.from_parquet(made.get(f"index/{old.version}.parquet")).schema.metadata
    shards = record.list_records(made)
    tables = [record.read_record(made, *shard) for shard in shards]
    assert all(table.schema.remove_metadata() == record.RECORD for table in tables)
    assert {row["concealed"] for table in tables for row in table.to_pylist()} == {None}
    assert old.concealed == {"frames": 0, "samples": 0, "unknown": 6}
    assert concealed_words(summary(made)["concealed"], 120) == "not counted in 6 samples, made by an older version"
    assert verify(made, decode="all").damages == []

    assert index.merge(made) == old
    shutil.copyfile(corpus / "calm" / "piece0.mp4", corpus / "calm" / "later.mp4")
    shard(corpus, made)
    assert index.current_index(made).concealed == {"frames": 0, "samples": 0, "unknown": 6}
    assert sum(split.samples for split in index.current_index(made).splits.values()) == 7
    assert verify(made).damages == []


def test_another_share_of_concealed_frames_is_another_store(corpus: Path, made: Store) -> None:
    changed = SETTINGS.model_copy(update={"encode": SETTINGS.encode.model_copy(update={"maximum_concealed": 0.5})})
    with pytest.raises(UserError, match=r"encode\.maximum_concealed: there null, here 0\.5"):
        prepare(str(corpus), made, changed, READING)
