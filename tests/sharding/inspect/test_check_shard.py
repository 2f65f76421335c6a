"""Every damage to a shard's record and failure list is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharding.format import record
from sharding.inspect.verify import verify
from sharding.storage.store import Store
from tests.support.damaged_stores import chosen, flip, named, rewrite, rows_of, said


def set_in(name: str, value: object, of: str | None = None) -> Callable[[list[dict[str, Any]], dict[str, Any]], object]:
    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        entry = rows[1][of] if of else rows[1]
        entry[name] = value(entry[name]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            set_in("packet_size", lambda sizes: [*sizes[:-1], sizes[-1] - 1]),
            "packet table than the record: packet_size",
        ),
        (set_in("packet_offset", lambda starts: [starts[0] + 1, *starts[1:]]), "packet_offset"),
        (set_in("packet_key", lambda keys: [not key for key in keys]), "packet_key"),
        (set_in("group_crc32", lambda crcs: [crc ^ 1 for crc in crcs]), "group_crc32"),
        (set_in("group_crc32", lambda crcs: [crc ^ 1 for crc in crcs], "flow"), "flow.mp4 has another packet table"),
        (set_in("extradata", lambda data: data + b"\0"), "extradata"),
        (set_in("packet_pts", lambda times: times[:-1]), "its packet table has not one packet a frame"),
        (set_in("frames", 19, "flow"), "its flow packet table has not one packet a frame"),
        (set_in("width", 34), "pictures of 40x32; 34x32 are recorded"),
        (set_in("height", 32, "flow"), "pictures of 40x64; 40x32 are recorded"),
        (set_in("labels", [7]), "labels outside the class list: [7]"),
        (set_in("labels", [-1]), "labels outside the class list: [-1]"),
        (set_in("start", 0.5), "json is not what the record says: start"),
        (set_in("offset", lambda offset: offset + 512), "lies otherwise than recorded"),
        (set_in("size", lambda size: size - 1), "lies otherwise than recorded"),
        (set_in("key", "short"), "its key is not 20 hex digits"),
    ],
)
def test_a_record_that_says_wrong_of_a_sample(store: Store, change: Any, words: str) -> None:
    rewrite(store, change)
    result = verify(store, "all")
    assert named(result, chosen(store)) == {rows_of(store)[1]["key"]}
    assert words in said(result), said(result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows, meta: meta.update(job="g0-000077"), "the record is that of train/g0-000077"),
        (lambda rows, meta: meta.update(settings_digest="0"), "other settings than the store"),
        (lambda rows, meta: rows[3].update(part=1), "parts that the record does not name: [1]"),
        (lambda rows, meta: meta["parts"][0].update(samples=5), "part 0 has not the 5 samples"),
        (lambda rows, meta: meta["parts"][0].update(path="train/../x.tar"), "part 0 has the path 'train/../x.tar'"),
        (lambda rows, meta: meta["parts"][0].update(sha256="0"), "sha256 is not the recorded one"),
        (lambda rows, meta: rows.pop(), "part 0 has not the 4 samples"),
        (lambda rows, meta: meta["parts"][0].update(label_histogram={"0": 99}), "label histogram of part 0"),
        (lambda rows, meta: meta.update(frames=1), "has not the frames of its samples"),
        (lambda rows, meta: meta.update(failures=1), "its metadata cannot be read"),
        (lambda rows, meta: meta.pop("failures"), "its metadata cannot be read"),
    ],
)
def test_a_record_that_says_wrong_of_its_shard(store: Store, change: Any, words: str) -> None:
    shard = chosen(store)
    rewrite(store, change, merge=False)
    result = verify(store)
    assert words in said(result) and {(d.split, d.job) for d in result.damages} <= {shard, ("", "")}


def test_damaged_missing_and_swapped_records(store: Store) -> None:
    shard, other = chosen(store), next(s for s in record.list_records(store) if s != chosen(store))
    path = Path(store.url) / record.record_path(*shard)
    data = path.read_bytes()
    flip(path, len(data) // 3)
    result = verify(store)
    assert named(result, shard) == set() and "a shard's record is damaged" in said(result) and result.orphans == []
    path.unlink()
    result = verify(store)
    assert said(result) == f"{record.record_path(*shard)}: the index has this shard, but its record is missing"
    assert result.unfinished == 1 and not any(path.endswith(".tar") for path in result.orphans)
    shutil.copyfile(Path(store.url) / record.record_path(*other), path)
    result = verify(store)
    assert f"the record is that of {'/'.join(other)}" in said(result) and "another sample has this key" in said(result)


def test_a_failure_list_that_lost_a_line(store: Store) -> None:
    (path,) = Path(store.url).glob("*/*.failures.jsonl")
    line = path.read_text()
    path.write_text(line + line)
    assert "has 2 failures, the record says 1" in said(verify(store))
    path.write_text(line[:-20])
    assert "is not JSON lines" in said(verify(store))
    path.unlink()
    assert "its failure list, is missing" in said(verify(store))
    path.write_text(line.replace("reason", "raison"))
    assert "its content is not what its name says" in said(verify(store))
