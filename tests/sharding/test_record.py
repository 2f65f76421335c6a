"""Records and indices as Parquet: read without threads, and every damage told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sharding import index, record
from sharding.errors import UserError
from sharding.shard import finish, make_shard, prepare
from sharding.store import Store, open_store
from tests.sharding.test_shard import SETTINGS


@pytest.fixture()
def made(corpus: Path, tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"))
    for job in prepare(str(corpus), store, SETTINGS).todo:
        make_shard(job, str(corpus), store, SETTINGS)
    finish(store)
    return store


def damaged(path: Path, every: int) -> Iterator[None]:
    """The file with one byte changed, once for each `every` bytes of it; at the end as it was."""
    whole = path.read_bytes()
    for place in range(0, len(whole), every):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        yield
    path.write_bytes(whole)


def test_reading_and_writing_start_no_thread(made: Store) -> None:
    """Threads that live when the interpreter ends abort it now and then."""
    program = f"""
import os
from sharding import index, record
from sharding.store import open_store
store = open_store({made.url!r})
before = len(os.listdir("/proc/self/task"))
tables = [record.read_record(store, *shard) for shard in record.list_records(store)]
index.current_index(store)
record.from_parquet(record.to_parquet(tables[0]), ["key", "labels"])
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_a_damaged_record_is_told(made: Store) -> None:
    split, job = record.list_records(made)[0]
    whole = record.read_record(made, split, job)
    told = 0
    for _ in damaged(Path(made.url) / record.record_path(split, job), every=97):
        try:
            assert record.read_record(made, split, job).equals(whole)  # the byte was part of no value
        except UserError as error:
            assert "a shard's record is damaged" in error.what and error.where.endswith(f"{job}.parquet")
            told += 1
    assert told > 50


def test_a_damaged_index_is_told(made: Store) -> None:
    whole = index.current_index(made)
    path = Path(made.url) / "index" / f"{whole.version}.parquet"
    told = 0
    for _ in damaged(path, every=17):
        try:
            assert index.current_index(made) == whole
        except UserError as error:
            assert "the store's index is damaged" in error.what and error.where == str(path)
            told += 1
    assert told > 50


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
    for ask in (index.inspect, finish):
        with pytest.raises(UserError, match="the store's index is damaged") as caught:
            ask(made)
        assert "delete it" in caught.value.remedy
    path.unlink()
    finish(made)
    assert index.current_index(made) == whole
