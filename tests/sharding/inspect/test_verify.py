"""Every damage to a store is found and named, a sound one is sound."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.format import index, record
from sharding.inspect.verify import Verification, VerifyProgress, verify
from sharding.make.prepare import prepare
from sharding.make.shard import make_shard
from sharding.media.encoder import KEY_FRAME_EVERY
from sharding.media.flow import FlowEncoder, FlowSettings
from sharding.storage.store import Store, open_store
from tests.benchmarks.encoding import decoded
from tests.support.stores import READING, SETTINGS, part_of


def sharded(corpus: Path, store: Store) -> None:
    for job, root in prepare(str(corpus), store, SETTINGS, READING).remaining_jobs():
        make_shard(job, root, store, SETTINGS)


def rewrite(
    store: Store,
    change: Callable[[list[dict[str, Any]], dict[str, Any]], object],
    shard: tuple[str, str] | None = None,
    to: str | None = None,
    merge: bool = True,
) -> None:
    """A shard's record with changed rows and metadata (under another job's name); the index made anew with `merge`."""
    split, job = shard or chosen(store)
    table = record.read_record(store, split, job)
    rows, meta = table.to_pylist(), record.record_meta(table.schema)
    change(rows, meta)
    store.delete(record.record_path(split, to or job))
    assert record.write_record(store, split, to or job, rows, meta)
    if merge:
        indexed(store)


def indexed(store: Store) -> None:
    for path in store.list("index/"):
        store.delete(path)
    index.merge(store)


def repack(store: Store, shard: tuple[str, str], members: Callable[[str, bytes], list[tuple[str, bytes]]]) -> None:
    """A shard's only part with its members replaced, and a record that knows it."""
    path = part_of(store, shard)
    sink = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(store.get(path))) as old, tarfile.open(fileobj=sink, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            for name, data in members(member.name, file.read()):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    data = sink.getvalue()
    store.delete(path)
    sha256 = hashlib.sha256(data).hexdigest()
    path = record.part_path(*shard, 0, sha256)
    store.put(path, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        places = {member.name: member for member in tar}

    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        meta["parts"][0] |= {"path": path, "bytes": len(data), "sha256": sha256}
        for row in rows:
            for name, entry in (("mp4", row), ("flow.mp4", row["flow"])):
                member = places.get(f"{row['key']}.{name}")
                if member is not None and entry is not None:
                    payload = data[member.offset_data :][: member.size]
                    place = {"offset": member.offset_data, "size": member.size}
                    entry |= place | {"sha256": hashlib.sha256(payload).hexdigest()}

    rewrite(store, change, shard)


def flow_of(data: bytes) -> dict[str, Any]:
    encoder = FlowEncoder(FlowSettings(), KEY_FRAME_EVERY)
    for number, luma in enumerate(decoded(data)):
        encoder.add(luma, 3600 * number)
    clip = encoder.finish()
    assert clip is not None
    return dict(vars(clip))


def add_flow(store: Store, shard: tuple[str, str]) -> None:
    """Give every sample of a shard its flow."""
    part = store.get(part_of(store, shard))
    flows: dict[str, dict[str, Any]] = {}

    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        for row in rows:
            found = flow_of(part[row["offset"] :][: row["size"]])
            flows[f"{row['key']}.mp4"] = {"data": found.pop("data"), "key": row["key"]}
            row["flow"] = found | {"offset": 0, "size": 0, "sha256": ""}

    rewrite(store, change, shard)

    def members(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if name not in flows:
            return [(name, data)]
        return [(name, data), (f"{flows[name]['key']}.flow.mp4", flows[name]["data"])]

    repack(store, shard, members)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pieces: list[Path], broken: dict[str, Path]) -> Path:
    """A sound store of a few shards, one of them with flow."""
    folder = tmp_path_factory.mktemp("whole")
    for number, piece in enumerate(pieces):
        for copy in range(2):
            target = folder / "corpus" / ("calm" if number < 3 else "lively") / f"{number}-{copy}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(piece, target)
    shutil.copyfile(broken["text"], folder / "corpus" / "calm" / "note.mp4")
    store = open_store(str(folder / "store"))
    sharded(folder / "corpus", store)
    add_flow(store, chosen(store))
    return folder / "store"


@pytest.fixture()
def store(whole: Path, tmp_path: Path) -> Store:
    shutil.copytree(whole, tmp_path / "store")
    return open_store(str(tmp_path / "store"))


def chosen(store: Store) -> tuple[str, str]:
    """The shard to damage: one of four samples in one part."""
    return next(s for s in record.list_records(store) if record.read_record(store, *s).num_rows == 4)


def rows_of(store: Store) -> list[dict[str, Any]]:
    return list(record.read_record(store, *chosen(store)).to_pylist())


def named(found: Verification, shard: tuple[str, str]) -> set[str]:
    """The keys that are named; nothing else of the store may be."""
    assert {(damage.split, damage.job) for damage in found.damages} <= {shard, ("", "")}, found.damages
    return {damage.key for damage in found.damages if damage.key}


def said(found: Verification) -> str:
    return "\n".join(f"{damage.where}: {damage.what}" for damage in found.damages)


def test_a_sound_store(store: Store) -> None:
    told: list[VerifyProgress] = []
    found = verify(store, "all", workers=2, on_progress=told.append)
    assert found.intact and found.orphans == [] and (found.unfinished, found.not_indexed) == (0, 0)
    current = index.current_index(store)
    assert found.index == current.version and found.samples == found.decoded == 12
    assert found.parts == len(current.parts) and found.bytes == sum(part.bytes for part in current.parts)
    assert [progress.shards for progress in told] == list(range(found.shards + 1))
    assert {progress.total for progress in told} == {found.shards}
    assert told[-1] == VerifyProgress(found.shards, found.shards, 12, found.bytes, 0)
    assert verify(store, "none").decoded == 0
    some = verify(store, "sample").decoded
    assert found.shards <= some < 12 and verify(store, "sample", workers=1).decoded == some


def offset_of(rows: list[dict[str, Any]], sample: int, path: Path, name: str) -> tuple[int, int]:
    """(start, size) of a member's payload."""
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{rows[sample]['key']}.{name}")
        return member.offset_data, member.size


def first_header(rows: list[dict[str, Any]], sample: int, path: Path) -> int:
    return min(offset_of(rows, sample, path, name)[0] for name in ("mp4", "json", "flow.mp4")) - 512


def last_payload(rows: list[dict[str, Any]], sample: int, path: Path) -> tuple[int, int]:
    return max(offset_of(rows, sample, path, name) for name in ("mp4", "json", "flow.mp4"))


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


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
    found = verify(store, "all")
    assert not found.intact
    assert named(found, shard) == {rows[sample]["key"] for sample in samples}
    assert {damage.part for damage in found.damages} == {0}
    assert any(re.search(words, damage.what) for damage in found.damages), said(found)


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
        found = verify(store, "none")
    finally:
        path.write_bytes(sound)
    assert "the part's sha256 is not the recorded one" in {damage.what for damage in found.damages}
    starts = [first_header(rows, sample, path) for sample in range(4)]
    owner = rows[max(n for n in range(4) if starts[n] <= at)]["key"]
    inside = any(e["offset"] <= at < e["offset"] + e["size"] for row in rows for e in (row, row["flow"]))
    assert named(found, shard) == {owner} if inside else named(found, shard) <= {owner}


def test_swapped_parts(store: Store) -> None:
    one, two = [Path(store.url) / part_of(store, shard) for shard in record.list_records(store)[:2]]
    data = one.read_bytes()
    shutil.copyfile(two, one)
    two.write_bytes(data)
    found = verify(store)
    shards = {(damage.split, damage.job) for damage in found.damages}
    assert shards == set(record.list_records(store)[:2]) and "samples is in it, but" in said(found)


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
    found = verify(store)
    keys = named(found, shard)
    assert words in said(found) and (keys == {row["key"] for row in rows} or "../../x" in words)


def test_samples_in_another_order(store: Store) -> None:
    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        rows[1], rows[2] = rows[2], rows[1]

    keys = [row["key"] for row in rows_of(store)]
    rewrite(store, change)
    found = verify(store)
    assert named(found, chosen(store)) == {keys[2]} and "not in its place" in said(found)


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
    found = verify(store, "all")
    assert named(found, chosen(store)) == {rows_of(store)[1]["key"]}
    assert words in said(found), said(found)


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
    found = verify(store)
    assert words in said(found) and {(d.split, d.job) for d in found.damages} <= {shard, ("", "")}


def test_damaged_missing_and_swapped_records(store: Store) -> None:
    shard, other = chosen(store), next(s for s in record.list_records(store) if s != chosen(store))
    path = Path(store.url) / record.record_path(*shard)
    data = path.read_bytes()
    flip(path, len(data) // 3)
    found = verify(store)
    assert named(found, shard) == set() and "a shard's record is damaged" in said(found) and found.orphans == []
    path.unlink()
    found = verify(store)
    assert said(found) == f"{record.record_path(*shard)}: the index has this shard, but its record is missing"
    assert found.unfinished == 1 and not any(path.endswith(".tar") for path in found.orphans)
    shutil.copyfile(Path(store.url) / record.record_path(*other), path)
    found = verify(store)
    assert f"the record is that of {'/'.join(other)}" in said(found) and "another sample has this key" in said(found)


def test_the_stores_own_files(store: Store) -> None:
    root = Path(store.url)
    (newest,) = root.glob("index/*.parquet")
    data, head = newest.read_bytes(), (root / index.HEAD).read_bytes()
    newest.write_bytes(data[:-20])
    assert "the store's index is damaged" in said(verify(store))
    newest.unlink()
    found = verify(store)
    assert found.intact and found.index is None
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
    found = verify(store)
    assert "the index says otherwise than the record: bytes" in said(found) and named(found, shard) == set()


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
    found = verify(store)
    keys = {row["key"] for row in rows_of(store)}
    assert {(d.job, d.key) for d in found.damages} == {(j, key) for j in (job, "g0-000099") for key in keys}
    assert all("another sample has this key" in damage.what for damage in found.damages)


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
    found = verify(store)
    assert found.intact and found.orphans == sorted(orphans)


def test_a_shard_that_is_newer_than_the_index(store: Store) -> None:
    shard = chosen(store)
    kept = store.get(record.record_path(*shard))
    store.delete(record.record_path(*shard))
    indexed(store)
    assert verify(store).unfinished == 1
    store.put(record.record_path(*shard), kept)
    found = verify(store)
    assert found.intact and found.not_indexed == 1 and found.samples == 12


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


def test_many_parts_longer_than_a_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks shorter than most members, and of no multiple of a tar's."""
    monkeypatch.setattr("sharding.inspect.sequential_reader.BLOCK", 700)
    assert verify(store, "all").intact
    path = Path(store.url) / part_of(store, chosen(store))
    cut(path, path.stat().st_size * 2 // 3)
    assert "is missing" in said(verify(store))


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
    there = open_store(f"s3://{bucket}/verify-{time.time_ns()}")
    for path in store.list(""):
        there.put(path, store.get(path))
    yield there


def test_on_s3(remote: Store) -> None:
    assert verify(remote, "all").intact
    shard, rows = chosen(remote), rows_of(remote)
    data = bytearray(remote.get(part_of(remote, shard)))
    data[rows[2]["offset"] + rows[2]["size"] // 2] ^= 1
    remote.put(part_of(remote, shard), bytes(data))
    other = next(s for s in record.list_records(remote) if s != shard)
    remote.delete(part_of(remote, other))
    found = verify(remote)
    assert {damage.key for damage in found.damages if damage.key} == {rows[2]["key"]}
    assert (*other, 0, None) in {(d.split, d.job, d.part, d.key) for d in found.damages}


def test_memory_does_not_grow_with_a_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of many megabytes is never held whole: the longest read is a block or a sample."""
    monkeypatch.setattr("sharding.inspect.sequential_reader.BLOCK", 2**16)
    shard = chosen(store)
    path = Path(store.url) / part_of(store, shard)
    path.write_bytes(path.read_bytes() + bytes(2**24))
    longest = 0
    real = type(store).get_range

    def told(self: Store, name: str, start: int, end: int) -> bytes:
        nonlocal longest
        longest = max(longest, end - start)
        return real(self, name, start, end)

    monkeypatch.setattr(type(store), "get_range", told)
    found = verify(store)
    assert "bytes long" in said(found) and 2**15 < longest <= 2**16
