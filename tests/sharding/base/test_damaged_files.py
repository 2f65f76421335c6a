"""Old and damaged files of stores: told with a remedy by whatever reads them, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharding.base.errors import UserError
from sharding.format import index, record
from sharding.format.generations import generations
from sharding.format.record import record_meta, write_record
from sharding.inspect.summary import summary
from sharding.inspect.verify import verify
from sharding.make.prepare import stored_settings
from sharding.storage.store import Store, open_store
from tests.support.stores import READING, SETTINGS, retry, shard

NONE = [b"", b"{", b"[1, 2]", b"null", b"7", b'"text"', b"\xff\xfe{", b"[" * 100_000, b'{"format": 99}', b"\0" * 512]


@pytest.fixture()
def store(corpus: Path, tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"))
    shard(corpus, made)
    return made


def readers(store: Store, corpus: Path) -> dict[str, Callable[[], object]]:
    return {
        "summary": lambda: summary(store),
        "merge": lambda: index.merge(store),
        "shard": lambda: shard(corpus, store, SETTINGS, READING),
        "retry": lambda: retry(store),
    }


def assert_refused(store: Store, corpus: Path, path: str, contents: list[bytes], but: tuple[str, ...] = ()) -> None:
    for content in contents:
        for name, read in readers(store, corpus).items():
            store.put(path, content)
            if name not in but:
                with pytest.raises(UserError) as caught:
                    read()
                assert caught.value.remedy and caught.value.where == f"{store.url}/{path}", (name, content[:20])
    assert not verify(store, "none").intact


def test_a_head_that_is_none(store: Store, corpus: Path) -> None:
    assert_refused(store, corpus, index.HEAD, NONE)
    with pytest.raises(UserError):
        stored_settings(store)


def test_a_plan_that_is_none(store: Store, corpus: Path) -> None:
    whole = json.loads(store.get("plan/g0.json"))
    assert whole["format"] == 1
    others: list[dict[str, Any]] = [
        {"jobs": 3}, {"jobs": {"train": "x"}}, {"classes": "calm"}, {"number": []}, {"kind": "other"}, {"format": 2},
        {"left_out": [1]}, {"videos": None}, {"digest": 3},
    ]  # fmt: skip
    changed = [json.dumps({**whole, **other}).encode() for other in others]
    assert_refused(store, corpus, "plan/g0.json", [*NONE, *changed])


def test_a_plan_of_before_formats_had_numbers(store: Store) -> None:
    whole = json.loads(store.get("plan/g0.json"))
    del whole["format"]
    before = generations(store)
    store.put("plan/g0.json", json.dumps(whole).encode())
    store.put("plan/g0 (copy).json", b"{")
    assert generations(store) == before


@pytest.mark.parametrize("what", ["record", "index"])
def test_a_table_of_a_later_format(store: Store, corpus: Path, what: str) -> None:
    (split, job), *_ = record.list_records(store)
    if what == "record":
        path = record.record_path(split, job)
        table = record.read_record(store, split, job)
        meta = {**record_meta(table.schema), "format": 99}
        store.delete(path)
        write_record(store, split, job, table.to_pylist(), meta)
    else:
        (path,) = store.list("index/")
        table = record.from_parquet(store.get(path))
        meta = {**record_meta(table.schema), "format": 99}
        store.put(path, record.to_parquet(record.with_meta(table, meta)))
    read = (lambda: index.merge(store)) if what == "record" else (lambda: summary(store))
    with pytest.raises(UserError, match="format 99; this version reads format 2") as caught:
        read()
    assert caught.value.where.endswith(path) and "version of Reelscale" in caught.value.remedy
    assert "format 99" in verify(store, "none").damages[0].what


@pytest.mark.slow
@pytest.mark.parametrize("what", ["record", "index", "plan"])
def test_tables_that_are_none(store: Store, corpus: Path, what: str) -> None:
    ends = {"record": ("train/", ".parquet"), "index": ("index/", ""), "plan": ("plan/", ".parquet")}
    start, end = ends[what]
    path = next(path for path in store.list(start) if path.endswith(end))
    whole = store.get(path)
    fine = {"record": ("summary", "shard", "retry"), "index": ("merge",), "plan": ("merge", "summary")}[what]
    if what == "record":  # an index that is there names its parts
        for read in (lambda: index.merge(store), lambda: summary(store)):
            store.put(path, whole[: len(whole) // 2])
            try:
                read()
            except UserError as error:
                assert error.where.endswith(path)
    assert_refused(store, corpus, path, [*NONE, whole[: len(whole) // 2]], but=fine)


@pytest.mark.parametrize("name", ["000001-copy.parquet", "x.parquet", "000001-0123456789abcdef (copy).parquet"])
def test_strangers_beside_the_index_are_left_alone(store: Store, name: str) -> None:
    before = index.current_index(store)
    store.put(f"index/{name}", b"")
    assert index.current_index(store) == before and index.merge(store) == before
