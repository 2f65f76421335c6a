"""A real S3 server behind a proxy that loses, cuts and refuses, and one that goes away."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.base.redact import redacted
from sharding.storage import fsspec_store as remote
from sharding.storage import s3
from sharding.storage.s3 import S3Store
from sharding.storage.store import open_store
from tests.support import network_faults as faults
from tests.support.network_faults import Proxy, before_s3
from tests.support.s3 import KEY, SECRET, S3Server, free_port, running_s3

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3() as found:
        yield found


@pytest.fixture()
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with before_s3(server.environment, monkeypatch, seed=1) as found:
        yield found


@pytest.fixture()
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART", 5 * MIB)  # S3's own least
    monkeypatch.setattr(s3, "_SINGLE", 5 * MIB)
    monkeypatch.setattr(s3, "_CHUNK", MIB)


def opened(name: str, patience: float = 60) -> S3Store:
    store = open_store(f"s3://bucket/{name}", patience)
    assert isinstance(store, S3Store)
    return store


@pytest.mark.parametrize(("rate", "objects"), [(0.1, 30), (0.4, 12)])
def test_all_arrives_whatever_breaks(
    proxy: Proxy, tmp_path: Path, small_parts: None, rate: float, objects: int
) -> None:
    proxy.rate = rate
    store = opened(f"rate-{rate}")
    data = random.Random(0).randbytes(12 * MIB)
    (tmp_path / "big").write_bytes(data)

    def work(number: int) -> None:
        path = f"{number}"
        store.put(path, data[number : number + 5000], create=True)
        assert store.get(path) == data[number : number + 5000]
        assert store.get_range(path, 100, 4000) == data[number + 100 : number + 4000]
        assert store.get_tail(path, 8) == (data[number + 4992 : number + 5000], 5000)
        assert store.size(path) == 5000
        with pytest.raises(FileExistsError):
            store.put(path, data[number : number + 5000], create=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(objects)))
    store.put_file("big", tmp_path / "big")
    store.get_file("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert dict(store.walk()) == {"big": 12 * MIB} | {f"{number}": 5000 for number in range(objects)}
    assert all(proxy.counts[kind] for kind in faults.KINDS), proxy.counts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "big"]


def test_an_own_write_whose_answer_was_lost_is_no_other_s(proxy: Proxy) -> None:
    store = opened("lost")
    store.get_range("x", 0, 0)
    for number in range(3):  # on a fresh connection and on kept ones, where the client itself asks again
        proxy.script.append(("PUT", faults.RESET_AFTER))
        store.put(f"record{number}", b"mine", create=True)
        assert store.get(f"record{number}") == b"mine" and not proxy.script
        with pytest.raises(FileExistsError):
            store.put(f"record{number}", b"mine", create=True)


def test_another_s_write_of_the_same_bytes_is_not_ours(proxy: Proxy) -> None:
    one, other = opened("same"), opened("same")
    one.put("record", b"same", create=True)
    proxy.script += [("PUT", faults.SLOW_DOWN), ("PUT", faults.RESET_BEFORE)]
    with pytest.raises(FileExistsError):
        other.put("record", b"same", create=True)
    assert not proxy.script


def test_a_download_that_never_ends_well_leaves_nothing(proxy: Proxy, tmp_path: Path, small_parts: None) -> None:
    store = opened("cut", patience=0)
    store.put("object", bytes(3 * MIB))
    (tmp_path / "file").write_bytes(b"what was there")
    proxy.rate, proxy.kinds = 1.0, [faults.CUT_ANSWER]
    for fetch in (lambda: store.get_file("object", tmp_path / "file"), lambda: store.get("object")):
        with pytest.raises(UserError, match="does not answer"):
            fetch()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"what was there"]


def test_an_upload_that_never_ends_well_is_not_seen(proxy: Proxy, tmp_path: Path, small_parts: None) -> None:
    store = opened("uploads", patience=0)
    (tmp_path / "small").write_bytes(bytes(MIB))
    (tmp_path / "big").write_bytes(bytes(11 * MIB))
    proxy.rate, proxy.kinds = 1.0, [faults.CUT_REQUEST]
    proxy.script.append(("POST", "none"))  # the upload in parts begins, and its parts fail
    for name in ("small", "big"):
        with pytest.raises(UserError, match="does not answer"):
            store.put_file("object", tmp_path / name)
    proxy.rate = 0.0
    assert store.list() == [] and not store.exists("object")
    assert not store._ask("list_multipart_uploads", Bucket="bucket", Prefix="uploads/").get("Uploads")


def test_an_upload_in_parts_whose_end_was_lost(proxy: Proxy, tmp_path: Path, small_parts: None) -> None:
    store = opened("completed")
    data = random.Random(0).randbytes(6 * MIB)
    (tmp_path / "big").write_bytes(data)
    proxy.script += [("POST", "none"), ("POST", faults.RESET_AFTER)]
    store.put_file("object", tmp_path / "big")
    assert store.get("object") == data and not proxy.script
    assert sum(request.startswith("PUT") for request in proxy.requests) == 2  # nothing was sent twice


def test_a_server_that_is_gone_for_a_while(server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 1.0)
    store = opened("gone")
    store.put("before", b"kept")
    server.kill()
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(store.put, f"meanwhile{number}", b"x" * number, True) for number in range(3)]
        reads = pool.submit(store.get, "before")
        time.sleep(1)
        assert not any(write.done() for write in writes) and not reads.done()
        server.start(wait=False)
        assert reads.result() == b"kept"
        assert [write.result() for write in writes] == [None] * 3
    assert dict(store.walk("mean")) == {f"meanwhile{number}": number for number in range(3)}


def test_a_server_that_hangs(server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened("hangs")
    monkeypatch.setattr(s3, "_HANGS_AFTER", 1.0)
    monkeypatch.setattr(s3, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(remote, "CHECK_SECONDS", 0.5)
    with ThreadPoolExecutor(2) as pool, server.stopped():
        write = pool.submit(store.put, "object", bytes(1000), True)
        time.sleep(1.5)
        assert not write.done()
        with pytest.raises(UserError, match="does not answer"):
            opened("hangs")
    assert write.result() is None and store.get("object") == bytes(1000)
    assert sum(request.startswith("PUT") for request in proxy.requests) > 1


def test_opening_is_quick_and_bears_a_little(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.script += [("GET", fault) for fault in (faults.SLOW_DOWN, faults.RESET_BEFORE, faults.CUT_ANSWER)]
    store = opened("quick")
    assert not proxy.script
    asked = len(proxy.requests)
    assert open_store(store.url, ask=False).url == store.url and len(proxy.requests) == asked
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(UserError, match="does not answer"):
        opened("quick")
    assert time.monotonic() - began < 30  # of the 60 that a store that was opened has


def test_making_the_client_does_not_count_as_the_stores_time(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a machine is busy it takes seconds, and no store is to blame."""
    monkeypatch.setattr(s3, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(remote, "CHECK_SECONDS", 1.0)
    proxy.script.append(("GET", faults.SLOW_DOWN))
    plain = s3fs.S3FileSystem.set_session

    async def slow(self: s3fs.S3FileSystem, *arguments: Any, **options: Any) -> Any:
        if self._s3 is None:
            await asyncio.sleep(1.5)
        return await plain(self, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "set_session", slow)
    assert opened("busy").list("") == []


def test_what_cannot_help_is_not_tried_again(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened("absent")
    proxy.requests.clear()
    with pytest.raises(FileNotFoundError):
        store.get("absent")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(UserError, match="refused the credentials"):
        open_store(store.url, ask=False).get("absent")
    assert len(proxy.requests) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    with pytest.raises(UserError, match="cannot be used"):
        open_store(store.url, ask=False).get("absent")


def test_a_listing_comes_page_by_page(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened("pages")
    names = {f"folder{number % 3}/ä b+{number}": number for number in range(23)}
    for name, size in names.items():
        store.put(name, bytes(size))
    monkeypatch.setattr(s3, "_PAGE", 5)
    proxy.requests.clear()
    walk = store.walk()
    next(walk)
    assert len(proxy.requests) == 1
    proxy.script += [("GET", faults.CUT_ANSWER), ("GET", faults.SLOW_DOWN)]
    assert len(list(walk)) == 22 and not proxy.script
    assert dict(store.walk()) == names and store.list() == sorted(names)


def test_errors_tell_no_secrets(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("hunter2", SECRET, "AKIAABCDEFGHIJKLMNOP")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://somebody:hunter2@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="does not answer") as first:
        opened("secrets")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", secrets[2])
    with pytest.raises(UserError, match="refused the credentials") as second:
        opened("secrets")
    for error in (first.value, second.value):
        shown = "".join(traceback.format_exception(error))
        assert not [secret for secret in secrets if secret in shown], shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:pass@host:80/a?b=1 x", "at http://***@host:80/a?b=1 x"),
        ("sftp://me@host/a", "sftp://***@host/a"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("GET https://h/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=0ab&x=1", None),
        ("Authorization: AWS4-HMAC-SHA256 Credential=0ab/2026, Signature=0ab", "Authorization: ***"),
        ("<AWSAccessKeyId>0ab</AWSAccessKeyId>", "<AWSAccessKeyId>***</AWSAccessKeyId>"),
        ("key AKIAABCDEFGHIJKLMNOP does not exist", "key *** does not exist"),
        ("https://h/c?sv=1&sig=0ab%3D&se=2", "https://h/c?sv=1&sig=***&se=2"),
        (f"the key {KEY} and {SECRET}!", "the key *** and ***!"),
        (f"/data/{KEY}.json", f"/data/{KEY}.json"),
        ("a plain sentence: nothing to hide, 1 = 1", "a plain sentence: nothing to hide, 1 = 1"),
    ],
)
def test_redacted(text: str, shown: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert "0ab" not in redacted(text) and "AK%2F1" not in redacted(text)
    assert shown is None or redacted(text) == shown


@given(st.text(alphabet="abcXYZ019!$&()*+,;=:%-._~@", min_size=4).filter(lambda text: text.strip("@:")))
def test_no_password_of_a_url_is_shown(password: str) -> None:
    shown = redacted(f"could not reach sftp://me:{password}@host/path: refused")
    assert shown == "could not reach sftp://***@host/path: refused"


def test_many_threads_share_a_store(proxy: Proxy) -> None:
    store = opened("threads")
    won: list[int] = []

    def create(number: int) -> None:
        try:
            store.put("one", b"the same", create=True)
            won.append(number)
        except FileExistsError:
            pass

    proxy.rate = 0.3
    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
