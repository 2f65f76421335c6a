"""Two workers on one shard, who see other bytes: whoever commits first, the shard is his, whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharding.base.errors import DamagedStore
from sharding.format import index, record
from sharding.format.failures import read_failures, shards_with_failures
from sharding.format.plan import ShardJob
from sharding.inspect.summary import summary
from sharding.inspect.verify import verify
from sharding.make.prepare import prepare
from sharding.make.shard import ShardProgress, make_shard
from sharding.storage.store import Store, open_store
from tests.support import stores as making
from tests.support.stores import READING, shard

SETTINGS = making.SETTINGS.model_copy(update={"videos_per_shard": 100})
LOOK, UPLOAD, COMMIT = "look", "upload", "commit"


class Meanwhile:
    """A store that at one moment of a worker's end first lets something else happen, and then goes on."""

    def __init__(self, store: Store, moment: str, happens: Callable[[], object]) -> None:
        self.store, self.moment, self.happens = store, moment, happens
        self.looks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def exists(self, path: str) -> bool:
        existed = self.store.exists(path)  # then it happens: between a look and what follows it
        self.looks += 1
        self._at(LOOK if self.looks == 2 else "")
        return existed

    def put_file(self, path: str, local_path: Path) -> None:
        self.store.put_file(path, local_path)
        self._at(UPLOAD)

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        self._at(COMMIT if create else "")
        self.store.put(path, data, create)

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            self.happens()


@pytest.fixture(params=["directory", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Store:
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    environment, bucket = s3
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{bucket}/{tmp_path.name}")


@pytest.fixture()
def job(corpus: Path, store: Store) -> tuple[ShardJob, str]:
    """A job with several good videos and a broken one."""
    jobs = list(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    return next(one for one in jobs if 1 < len(good_of(one[0])) < len(one[0].videos))


@pytest.fixture()
def other(corpus: Path, job: tuple[ShardJob, str], pieces: list[Path], broken: dict[str, Path], tmp_path: Path) -> str:
    """Where another worker reads the same corpus: another picture under a name of the job's, and one more broken."""
    root = tmp_path / "elsewhere"
    shutil.copytree(corpus, root)
    first, *_, last = good_of(job[0])
    shutil.copyfile(next(piece for piece in pieces if piece.name != Path(first).name), root / first)
    shutil.copyfile(broken["noise"], root / last)
    return str(root)


def good_of(job: ShardJob) -> list[str]:
    return [video.uri for video in job.videos if "piece" in video.uri]


def held(store: Store, job: ShardJob) -> dict[str, bytes]:
    """What belongs to a shard."""
    return {path: store.get(path) for path in store.list(f"{job.split}/{job.id}")}


@pytest.mark.parametrize("moment", [LOOK, UPLOAD, COMMIT])
@pytest.mark.parametrize("first", ["sees all", "sees less"])
def test_who_commits_first_has_the_shard(
    store: Store, job: tuple[ShardJob, str], other: str, moment: str, first: str
) -> None:
    of, root = job
    winner, loser = (root, other) if first == "sees all" else (other, root)
    made: list[ShardProgress] = []
    whole: dict[str, bytes] = {}

    def commits() -> None:
        before = set(held(store, of))
        made.append(make_shard(of, winner, store, SETTINGS))
        whole.update({path: data for path, data in held(store, of).items() if path not in before})

    last = make_shard(of, loser, Meanwhile(store, moment, commits), SETTINGS)
    meta = record.read_meta(store, of.split, of.id)
    assert not made[0].made_by_another and last.made_by_another
    assert (last.samples, last.failures) == (made[0].samples, made[0].failures) == (meta["samples"], meta["failures"])
    assert held(store, of) == whole  # nothing of the loser's is left
    assert len(list(read_failures(store, [(of.split, of.id)], shards_with_failures(store)))) == sum(
        meta["failures"].values()
    )
    index.merge(store)
    found = verify(store, "all")
    assert found.intact and found.orphans == [] and found.samples == meta["samples"], (found.damages, found.orphans)


@pytest.mark.parametrize("moment", [LOOK, UPLOAD, COMMIT])
def test_workers_who_see_the_same_share_their_files(store: Store, job: tuple[ShardJob, str], moment: str) -> None:
    of, root = job
    last = make_shard(of, root, Meanwhile(store, moment, lambda: make_shard(of, root, store, SETTINGS)), SETTINGS)
    index.merge(store)
    found = verify(store, "all")
    assert last.made_by_another and found.intact and found.orphans == [], (found.damages, found.orphans)


class Killed(BaseException):
    """A worker's end in mid-commit."""


def test_what_a_killed_worker_left_is_told_and_never_read(store: Store, job: tuple[ShardJob, str], other: str) -> None:
    of, root = job

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        make_shard(of, other, Meanwhile(store, COMMIT, die), SETTINGS)
    left = sorted(held(store, of))
    assert len(left) == 2 and any(path.endswith(".failures.jsonl") for path in left)
    made = make_shard(of, root, store, SETTINGS)
    index.merge(store)
    assert not {part.path for part in index.current_index(store).parts} & set(left)
    found = verify(store, "all")
    assert found.intact and found.orphans == left
    assert summary(store)["failures"] == made.failures
    assert {line["uri"] for line in summary(store)["failure_examples"]} == {
        video.uri for video in of.videos if video.uri not in good_of(of)
    }


def test_a_store_with_names_of_before_is_read_verified_and_added_to(
    corpus: Path, pieces: list[Path], tmp_path: Path
) -> None:
    """Names without a digest, and records that do not name their failure list, as stores were written before."""
    store = open_store(str(tmp_path / "store"))
    shard(corpus, store)
    before = summary(store)
    for split, job in record.list_records(store):
        table = record.read_record(store, split, job)
        rows, meta = table.to_pylist(), record.record_meta(table.schema)
        moves = {part["path"]: f"{split}/{job}-{number:02d}.tar" for number, part in enumerate(meta["parts"])}
        if failure_list := meta.pop("failure_list"):
            moves[failure_list] = f"{split}/{job}.failures.jsonl"
        for old, new in moves.items():
            store.put(new, store.get(old))
            store.delete(old)
        for part in meta["parts"]:
            part["path"] = moves[part["path"]]
        store.delete(record.record_path(split, job))
        record.write_record(store, split, job, rows, meta)
    for path in store.list("index/"):
        store.delete(path)
    index.merge(store)
    result = verify(store, "all")
    assert result.intact and result.orphans == [] and result.samples == 6, (result.damages, result.orphans)
    same = ("samples", "failures", "failure_examples", "label_histogram")
    assert {name: summary(store)[name] for name in same} == {name: before[name] for name in same}
    shutil.copyfile(pieces[0], corpus / "calm" / "more.mp4")
    shard(corpus, store)
    result = verify(store, "all")
    assert result.intact and result.orphans == [] and result.samples == 7, (result.damages, result.orphans)


@pytest.mark.parametrize("damage", [b"{", b"[]\n", b"\xff\n", b'{"uri": "x"}\n', b""])
def test_a_failure_list_that_cannot_be_read_is_named(corpus: Path, tmp_path: Path, damage: bytes) -> None:
    store = open_store(str(tmp_path / "store"))
    shard(corpus, store)
    for path in [path for path in store.list("") if path.endswith(".failures.jsonl")]:
        store.put(path, damage)
    with pytest.raises(DamagedStore, match="failure list is damaged"):
        summary(store)
