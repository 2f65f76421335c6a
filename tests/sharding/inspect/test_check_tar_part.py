"""Every damage to a tar part is found, and the samples that it concerns are named."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.format import record
from sharding.inspect.verify import verify
from sharding.storage.store import Store
from tests.support.damaged_stores import chosen, cut, flip, named, repack, rewrite, rows_of, said
from tests.support.stores import part_of


def offset_of(rows: list[dict[str, Any]], sample: int, path: Path, name: str) -> tuple[int, int]:
    """(start, size) of a member's payload."""
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{rows[sample]['key']}.{name}")
        return member.offset_data, member.size


def first_header(rows: list[dict[str, Any]], sample: int, path: Path) -> int:
    return min(offset_of(rows, sample, path, name)[0] for name in ("mp4", "json", "flow.mp4")) - 512


def last_payload(rows: list[dict[str, Any]], sample: int, path: Path) -> tuple[int, int]:
    return max(offset_of(rows, sample, path, name) for name in ("mp4", "json", "flow.mp4"))


def zero(path: Path, at: int, length: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + length] = bytes(len(data[at : at + length]))
    path.write_bytes(data)


# What is done to the part, the samples (by number) that must be named and no others, and words of it.
TAR_DAMAGE: dict[str, tuple[Callable[[Path, list[dict[str, Any]]], object], set[int], str]] = {
    "cut at a member boundary": (lambda p, r: cut(p, first_header(r, 2, p)), {2, 3}, "json is missing"),
    "cut inside a header": (lambda p, r: cut(p, first_header(r, 2, p) + 100), {2, 3}, "json is missing"),
    "cut between the files of a sample": (
        lambda p, r: cut(p, last_payload(r, 2, p)[0] - 512), {2, 3}, "is missing"),
    "cut inside a payload": (lambda p, r: cut(p, sum(last_payload(r, 2, p)) - 9), {2, 3}, "is cut off"),
    "cut to nothing": (lambda p, r: cut(p, 0), set(), "not one of its 4 samples is in it"),
    "end marker cut": (lambda p, r: cut(p, sum(last_payload(r, 3, p)) + 511 & ~511), set(), "bytes long"),
    "flipped in a video": (
        lambda p, r: flip(p, sum(offset_of(r, 1, p, "mp4")) - 99), {1}, r"mp4 is not what was written \(sha256\)"),
    "flipped in a flow": (
        lambda p, r: flip(p, sum(offset_of(r, 1, p, "flow.mp4")) - 99), {1}, "flow.mp4 is not what was written"),
    "flipped in a json": (lambda p, r: flip(p, offset_of(r, 1, p, "json")[0]), {1}, "json is not JSON"),
    "flipped in the header of a video": (
        lambda p, r: flip(p, offset_of(r, 1, p, "mp4")[0] - 512), {1}, "the header of .*mp4 is damaged"),
    "flipped in the header of a json": (
        lambda p, r: flip(p, offset_of(r, 1, p, "json")[0] - 512), {1}, "json is missing"),
    "flipped between members": (
        lambda p, r: flip(p, sum(offset_of(r, 1, p, "json"))), set(), "the part's sha256 is not the recorded one"),
    "flipped in the padding at the end": (lambda p, r: flip(p, -1), set(), "not the end of a tar"),
    "a block of zeros for a header": (
        lambda p, r: zero(p, offset_of(r, 1, p, "mp4")[0] - 512, 512), {1}, "the header of .*mp4 is damaged"),
    "zeros from a sample on": (
        lambda p, r: zero(p, first_header(r, 2, p), 10**9), {2, 3}, "json is missing"),
    "something behind it": (lambda p, r: p.write_bytes(p.read_bytes() + b"x"), set(), "not the end of a tar"),
    "missing": (lambda p, r: p.unlink(), set(), "the part is missing, with its 4 samples"),
    "another shard's": (
        lambda p, r: shutil.copyfile(next(o for o in sorted(p.parent.glob("*.tar")) if o != p), p),
        set(), "not one of its 4 samples is in it, but"),
    "a folder": (lambda p, r: (p.unlink(), p.mkdir()), set(), "the part cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAR_DAMAGE)
def test_a_damaged_part(store: Store, kind: str) -> None:
    harm, samples, words = TAR_DAMAGE[kind]
    shard, rows = chosen(store), rows_of(store)
    harm(Path(store.url) / part_of(store, shard), rows)
    result = verify(store, "all")
    assert not result.intact
    assert named(result, shard) == {rows[sample]["key"] for sample in samples}
    assert {damage.part for damage in result.damages} == {0}
    assert any(re.search(words, damage.what) for damage in result.damages), said(result)


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_byte_of_a_part(store: Store, data: st.DataObject) -> None:
    """Found wherever it is; inside a video exactly that sample is named, elsewhere none but the one it lies in."""
    shard, rows = chosen(store), rows_of(store)
    path = Path(store.url) / part_of(store, shard)
    sound = path.read_bytes()
    at = data.draw(st.integers(0, len(sound) - 1))
    value = data.draw(st.integers(1, 255))
    path.write_bytes(sound[:at] + bytes([sound[at] ^ value]) + sound[at + 1 :])
    try:
        result = verify(store, "none")
    finally:
        path.write_bytes(sound)
    assert "the part's sha256 is not the recorded one" in {damage.what for damage in result.damages}
    starts = [first_header(rows, sample, path) for sample in range(4)]
    owner = rows[max(n for n in range(4) if starts[n] <= at)]["key"]
    inside = any(e["offset"] <= at < e["offset"] + e["size"] for row in rows for e in (row, row["flow"]))
    assert named(result, shard) == {owner} if inside else named(result, shard) <= {owner}


def test_swapped_parts(store: Store) -> None:
    one, two = [Path(store.url) / part_of(store, shard) for shard in record.list_records(store)[:2]]
    data = one.read_bytes()
    shutil.copyfile(two, one)
    two.write_bytes(data)
    result = verify(store)
    shards = {(damage.split, damage.job) for damage in result.damages}
    assert shards == set(record.list_records(store)[:2]) and "samples is in it, but" in said(result)


def other_json(name: str, data: bytes) -> list[tuple[str, bytes]]:
    return [(name, json.dumps(json.loads(data) | {"labels": [1, 0]}).encode() if name.endswith(".json") else data)]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (other_json, "json is not what the record says: labels"),
        (lambda name, data: [(name, b"[1]" if name.endswith("json") else data)], "json is not JSON"),
        (lambda name, data: [(name, data), *([("../../x", b"x")] if "json" in name else [])], "'../../x' at byte"),
        (lambda name, data: [(name, data)] * (2 if "json" in name else 1), "json is there twice"),
        (lambda name, data: [] if ".flow" in name else [(name, data)], "flow.mp4 is missing"),
        (lambda name, data: [(name, b"junk" if name.endswith("mp4") else data)], "gives no packets"),
        (lambda name, data: [(name, data + b"\0" * 8 if "json" in name else data)], "json is not JSON"),
        (lambda name, data: [(name, b" " * 2**21 if "json" in name else data)], "is 2097152 bytes long"),
    ],
)
def test_a_part_that_its_record_agrees_with_all_the_same(
    store: Store, members: Callable[[str, bytes], list[tuple[str, bytes]]], words: str
) -> None:
    """Bytes and digests are those of the record: only looking inside tells."""
    shard, rows = chosen(store), rows_of(store)
    repack(store, shard, members)
    result = verify(store)
    keys = named(result, shard)
    assert words in said(result) and (keys == {row["key"] for row in rows} or "../../x" in words)


def test_samples_in_another_order(store: Store) -> None:
    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        rows[1], rows[2] = rows[2], rows[1]

    keys = [row["key"] for row in rows_of(store)]
    rewrite(store, change)
    result = verify(store)
    assert named(result, chosen(store)) == {keys[2]} and "not in its place" in said(result)


def test_many_parts_longer_than_a_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks shorter than most members, and of no multiple of a tar's."""
    monkeypatch.setattr("sharding.inspect.sequential_reader.BLOCK", 700)
    assert verify(store, "all").intact
    path = Path(store.url) / part_of(store, chosen(store))
    cut(path, path.stat().st_size * 2 // 3)
    assert "is missing" in said(verify(store))


def test_memory_does_not_grow_with_a_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of many megabytes is never held whole: the longest read is a block or a sample."""
    monkeypatch.setattr("sharding.inspect.sequential_reader.BLOCK", 2**16)
    shard = chosen(store)
    path = Path(store.url) / part_of(store, shard)
    path.write_bytes(path.read_bytes() + bytes(2**24))
    longest = 0
    real = type(store).get_range

    def watched(self: Store, name: str, start: int, end: int) -> bytes:
        nonlocal longest
        longest = max(longest, end - start)
        return real(self, name, start, end)

    monkeypatch.setattr(type(store), "get_range", watched)
    result = verify(store)
    assert "bytes long" in said(result) and 2**15 < longest <= 2**16
