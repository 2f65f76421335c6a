"""Every damage to a store is found and named, a sound one is sound."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharding.base.errors import UserError
from sharding.format import index, record
from sharding.inspect.verify import VerifyProgress, verify
from sharding.storage.store import Store, open_store
from tests.support.damaged_stores import chosen, indexed, named, rewrite, rows_of, said
from tests.support.stores import part_of


def test_a_sound_store(store: Store) -> None:
    progress: list[VerifyProgress] = []
    result = verify(store, "all", workers=2, on_progress=progress.append)
    assert result.intact and result.orphans == [] and (result.unfinished, result.not_indexed) == (0, 0)
    current = index.current_index(store)
    assert result.index == current.version and result.samples == result.decoded == 12
    assert result.parts == len(current.parts) and result.bytes == sum(part.bytes for part in current.parts)
    assert [each.shards for each in progress] == list(range(result.shards + 1))
    assert {each.total for each in progress} == {result.shards}
    assert progress[-1] == VerifyProgress(result.shards, result.shards, 12, result.bytes, 0)
    assert verify(store, "none").decoded == 0
    some = verify(store, "sample").decoded
    assert result.shards <= some < 12 and verify(store, "sample", workers=1).decoded == some


def test_the_stores_own_files(store: Store) -> None:
    root = Path(store.url)
    (newest,) = root.glob("index/*.parquet")
    data, head = newest.read_bytes(), (root / index.HEAD).read_bytes()
    newest.write_bytes(data[:-20])
    assert "the store's index is damaged" in said(verify(store))
    newest.unlink()
    result = verify(store)
    assert result.intact and result.index is None
    newest.write_bytes(data)
    (root / index.HEAD).write_bytes(head[:-20])
    assert "reelscale.json: the store's head is damaged: not JSON" in said(verify(store))
    (root / index.HEAD).write_bytes(head.replace(b'"short_edge": 32', b'"short_edge": 34'))
    assert "its settings are not what their digest says" in said(verify(store))
    (root / index.HEAD).write_bytes(head.replace(b"calm", b"clam"))
    assert "class names" in said(verify(store))
    (root / index.HEAD).unlink()
    assert "reelscale.json is missing" in said(verify(store))
    (root / index.HEAD).write_bytes(head)
    plan = next(root.glob("plan/*.parquet"))
    content = plan.read_bytes()
    plan.write_bytes(content[:-1])
    assert "a plan, is damaged" in said(verify(store))
    plan.unlink()
    assert f"plan/{plan.name}, a plan, is missing" in said(verify(store))
    plan.write_bytes(content)
    (root / "plan" / "g0.json").write_text("{")
    assert "plan/g0.json, a plan, is damaged" in said(verify(store))
    (root / "plan" / "g0.json").unlink()
    assert "plan/g0.json, a plan, is missing" in said(verify(store))


def test_an_index_of_other_parts(store: Store) -> None:
    shard = chosen(store)
    before = {path: store.get(path) for path in store.list("index/")}
    rewrite(store, lambda rows, meta: meta["parts"][0].update(bytes=1))
    indexed(store)
    for path in store.list("index/"):
        store.delete(path)
    for path, data in before.items():
        store.put(path, data)
    result = verify(store)
    assert "the index says otherwise than the record: bytes" in said(result) and named(result, shard) == set()


def test_the_same_sample_in_two_shards(store: Store) -> None:
    shard = chosen(store)
    job = shard[1]
    path = part_of(store, shard).replace(job, "g0-000099")
    store.put(path, store.get(part_of(store, shard)))

    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        meta["job"] = "g0-000099"
        meta["parts"][0]["path"] = path
        meta["failures"] = {}

    rewrite(store, change, shard, to="g0-000099")
    result = verify(store)
    keys = {row["key"] for row in rows_of(store)}
    assert {(d.job, d.key) for d in result.damages} == {(j, key) for j in (job, "g0-000099") for key in keys}
    assert all("another sample has this key" in damage.what for damage in result.damages)


def test_what_no_record_names_is_told_and_no_damage(store: Store) -> None:
    split, job = chosen(store)
    names = ("", "-0123456789abcdef")
    orphans = [
        *(f"{split}/{other}{name}.failures.jsonl" for other in (job, "g0-000088") for name in names),
        *(
            f"{split}/{other}-0{part}{name}.tar"
            for other, part in ((job, 0), (job, 1), ("g0-000088", 0))
            for name in names
        ),
    ]
    for path in orphans:
        store.put(path, b"of a killed worker")
    result = verify(store)
    assert result.intact and result.orphans == sorted(orphans)


def test_a_shard_that_is_newer_than_the_index(store: Store) -> None:
    shard = chosen(store)
    kept = store.get(record.record_path(*shard))
    store.delete(record.record_path(*shard))
    indexed(store)
    assert verify(store).unfinished == 1
    store.put(record.record_path(*shard), kept)
    result = verify(store)
    assert result.intact and result.not_indexed == 1 and result.samples == 12


class Gone:
    """A store that stops answering once its parts are read."""

    def __init__(self, store: Store) -> None:
        self.store, self.url, self.away = store, store.url, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get_range(self, path: str, start: int, end: int) -> bytes:
        self.away = self.away or path.endswith(".tar")
        return self.store.get_range(path, start, end) if not self.away else self._raise()

    def list(self, prefix: str = "") -> list[str]:
        return self.store.list(prefix) if not self.away else self._raise()

    def _raise(self) -> Any:
        raise UserError("the store does not answer", self.url, "wait")


def test_a_store_that_is_away_is_not_a_damaged_one(store: Store) -> None:
    with pytest.raises(UserError, match="the store does not answer"):
        verify(Gone(store))  # type: ignore[arg-type]


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards here"):
        verify(open_store(str(tmp_path)))


@pytest.fixture()
def remote(store: Store, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    environment, bucket = s3
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store_on_s3 = open_store(f"s3://{bucket}/verify-{time.time_ns()}")
    for path in store.list(""):
        store_on_s3.put(path, store.get(path))
    yield store_on_s3


def test_on_s3(remote: Store) -> None:
    assert verify(remote, "all").intact
    shard, rows = chosen(remote), rows_of(remote)
    data = bytearray(remote.get(part_of(remote, shard)))
    data[rows[2]["offset"] + rows[2]["size"] // 2] ^= 1
    remote.put(part_of(remote, shard), bytes(data))
    other = next(s for s in record.list_records(remote) if s != shard)
    remote.delete(part_of(remote, other))
    result = verify(remote)
    assert {damage.key for damage in result.damages if damage.key} == {rows[2]["key"]}
    assert (*other, 0, None) in {(d.split, d.job, d.part, d.key) for d in result.damages}
