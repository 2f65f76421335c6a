"""A store: whether this machine may do with it all that sharding, training and checkpoints do."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.jobs.doctor.clock import skew_verdict
from cluster.jobs.doctor.finding import Verdict, ok, skipped, wrong
from cluster.jobs.doctor.probe import tried
from sharding.storage.store import Store, open_store

_SECONDS = 90.0
_RETRY_SECONDS = 10.0
_RIVALS = 4  # that put one object at the same time
_POLICY = "let the bucket's policy pass GetObject, PutObject, DeleteObject and ListBucket below the prefix"
_CONDITIONAL = "use a server that keeps If-None-Match: * (S3 does; in MinIO, SeaweedFS and Ceph newer releases do)"


@dataclass(frozen=True)
class StoreTrial:
    """What was tried of a store: `problem` is the first thing that went wrong, "" if all went well; times in seconds.

    `winners`: of several that put the same new object at once, how many were let; one, where conditional puts work.
    """

    problem: str = ""
    winners: int = 1
    round_trip: float = 0.0
    skew: float | None = None  # this clock minus the store's; None where it has none of its own


def check_store(url: str | None) -> Verdict:
    """Whether an object can be put, put only once, read, listed and deleted there."""
    if url is None:
        return skipped("no store was named: --store URL tries one")
    return store_verdict(tried(try_store, url, seconds=_SECONDS), url)


def check_store_clock(url: str | None) -> Verdict:
    """Whether this clock agrees with the store's."""
    if url is None:
        return skipped("no store was named: --store URL compares with its clock")
    skew = tried(clock_skew, url, seconds=_SECONDS)
    return skipped(f"{url} has no clock of its own that it tells") if skew is None else skew_verdict(skew, url)


def store_verdict(trial: StoreTrial, url: str) -> Verdict:
    """Of what was tried of a store."""
    if trial.problem:
        return wrong(f"{url}: {trial.problem}", _POLICY)
    if trial.winners != 1:
        what = f"{url}: {trial.winners} of {_RIVALS} conditional puts of one object at the same time succeeded"
        return wrong(f"{what}, not 1: two writers could overwrite each other's shards and checkpoints", _CONDITIONAL)
    return ok(f"{url}: read, write, conditional put, list and delete work; {trial.round_trip * 1000:.0f} ms a read")


def try_store(url: str) -> StoreTrial:
    """Puts, reads, lists and deletes small objects below a name of its own, of which nothing stays.

    Raises UserError where the store cannot be used at all.
    """
    store = open_store(url, retry_seconds=_RETRY_SECONDS)
    with _leaving_no_folder(store), _own_object(store) as path:
        data = secrets.token_bytes(4096)
        store.put(path, data)
        began = time.monotonic()
        if store.get(path) != data or store.get_range(path, 100, 200) != data[100:200]:
            return StoreTrial(problem="what was read is not what was written")
        round_trip = (time.monotonic() - began) / 2
        if path not in store.list(path):
            return StoreTrial(problem="an object that was just written is not listed")
        store.delete(path)
        if store.exists(path):
            return StoreTrial(problem="an object that was deleted is still there")
        return StoreTrial(winners=_winners(store, path), round_trip=round_trip)


def clock_skew(url: str) -> float | None:
    """Seconds by which this clock is ahead of the store's, None where that tells no time: half a round trip is off."""
    store = open_store(url, ask=False)
    store.server_time()  # makes the client and its connection, which takes time of its own
    began = time.time()
    server_time = store.server_time()
    if server_time is None:
        return None
    return (began + time.time()) / 2 - server_time - 0.5  # an HTTP date is cut to whole seconds


def _winners(store: Store, path: str) -> int:
    """How many of several that create the same object at once are let."""

    def create(number: int) -> bool:
        try:
            store.put(path, b"%d" % number, create=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(_RIVALS) as rivals:
        return sum(rivals.map(create, range(_RIVALS)))


@contextlib.contextmanager
def _own_object(store: Store) -> Iterator[str]:
    """A path that nobody else has, where nothing is left after the `with`."""
    path = f".doctor-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        with contextlib.suppress(Exception):  # what is wrong is said already
            store.delete(path)


@contextlib.contextmanager
def _leaving_no_folder(store: Store) -> Iterator[None]:
    """Remove the folders that the `with` has made for a store in a directory, if they are empty."""
    root = Path(store.url)
    new = [] if store.remote else [place for place in (root, *root.parents) if not place.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for place in new:
                place.rmdir()
