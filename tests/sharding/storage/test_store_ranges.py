"""Ranges of objects on S3 by presigned URLs: exact and resumed whatever breaks, refused as the client refuses."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from sharding.base.errors import UserError
from sharding.storage import fsspec_store as remote
from sharding.storage import presigned_reader, range_connections
from sharding.storage.s3 import S3Store
from sharding.storage.store import open_store
from tests.support import network_faults as faults
from tests.support.network_faults import Proxy, before_s3, fault_proxy
from tests.support.s3 import SECRET, S3Server, running_s3

pytestmark = pytest.mark.slow

MIB = 2**20
DATA = random.Random(0).randbytes(32 * MIB)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3(public=True) as found:
        yield found


@pytest.fixture()
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with before_s3(server.environment, monkeypatch, seed=1) as found:
        yield found


def opened(data: bytes = DATA, patience: float = 60) -> S3Store:
    """A store whose `object` is `data`, and from which one byte was read, if it has one."""
    store = open_store("s3://bucket/ranges", patience)
    assert isinstance(store, S3Store)
    store.put("object", data)
    assert store.get_range("object", 0, 1) == data[:1]
    return store


def presigned_only(proxy: Proxy) -> bool:
    """Whether all that was asked for was asked for by presigned URLs."""
    return all("X-Amz-Signature=" in request for request in proxy.requests)


@pytest.fixture()
def signed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths for which a URL was signed."""
    paths: list[str] = []
    real = S3Store._sign

    def sign(store: S3Store, path: str) -> str:
        paths.append(path)
        return real(store, path)

    monkeypatch.setattr(S3Store, "_sign", sign)
    return paths


def test_a_url_is_signed_once_an_object(proxy: Proxy, signed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(DATA[:MIB])
    store.put("ä other+%/x?y", b"other")
    proxy.requests.clear()
    for number in range(20):
        assert store.get_range("object", number, 5000) == DATA[number:5000]
        assert store.get_range("ä other+%/x?y", 1, 5) == b"ther"
    assert signed == ["object", "ä other+%/x?y"] and len(proxy.requests) == 40 and presigned_only(proxy)
    monkeypatch.setattr(presigned_reader, "_KEPT", 1)
    store = opened(DATA[:MIB])
    store.put("third", b"3")
    assert store.get_range("third", 0, 1) == b"3" and store.get_range("object", 0, 9) == DATA[:9]
    assert signed[2:] == ["object", "third", "object"]


def test_threads_that_want_one_object_sign_it_once(proxy: Proxy, signed: list[str]) -> None:
    store = opened()
    signed.clear()
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(store.get_range, ["object"] * 16, [5] * 16, [500] * 16)) == [DATA[5:500]] * 16
        store.put("another", b"0123456789")
        assert set(threads.map(store.get_range, ["another"] * 16, [2] * 16, [4] * 16)) == {b"23"}
    assert signed == ["another"]


def test_all_arrives_whatever_breaks(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.2)
    store = opened()
    proxy.requests.clear()
    proxy.rate = 0.1

    def read(number: int) -> None:
        start = random.Random(number).randrange(31 * MIB)
        end = start + (MIB if number % 10 == 0 else 20_000)
        assert store.get_range("object", start, end) == DATA[start:end]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(200)))
    refusals = (faults.SLOW_DOWN, faults.CUT_ANSWER)
    assert all(proxy.counts[kind] > 1 for kind in (*refusals, faults.RESET_BEFORE, faults.RESET_AFTER)), proxy.counts
    assert presigned_only(proxy)
    # A connection that is reset before an answer may have been closed long ago: that is no retry.
    assert store.counters.retries >= sum(proxy.counts[kind] for kind in refusals)


def test_a_broken_body_goes_on_where_it_broke(proxy: Proxy) -> None:
    store = opened()
    before, proxy.sent = store.counters.bytes, 0
    proxy.script += [("GET", faults.CUT_ANSWER), ("GET", faults.SLOW_DOWN), ("GET", faults.CUT_ANSWER)]
    assert store.get_range("object", 0, len(DATA)) == DATA
    assert proxy.sent == len(DATA) == store.counters.bytes - before
    assert store.counters.retries == 3 and not proxy.script and presigned_only(proxy) is False  # the put


def test_a_server_that_gives_less_is_asked_for_the_rest(proxy: Proxy) -> None:
    store = opened(DATA[:MIB])
    proxy.sent = 0
    proxy.script.append(("GET", faults.HALF_RANGE))
    assert store.get_range("object", 100, 50_000) == DATA[100:50_000]
    assert proxy.sent == 49_900 and store.counters.retries == 1


@pytest.mark.parametrize("data", [DATA[1 : MIB + 1], DATA[: MIB // 4], DATA[: 2 * MIB] + b"longer"])
def test_an_object_replaced_between_two_tries(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    store = opened(DATA[:MIB])
    real = S3Store._again

    def replace(store: S3Store, state: object) -> None:
        real(store, state)  # type: ignore[arg-type]
        open_store(store.url, ask=False).put("object", data)

    monkeypatch.setattr(S3Store, "_again", replace)
    proxy.script.append(("GET", faults.CUT_ANSWER))
    with pytest.raises(UserError, match=r"was replaced while|ends early"):
        store.get_range("object", 0, MIB)
    monkeypatch.undo()


def test_a_closed_connection_is_replaced(proxy: Proxy) -> None:
    store = opened(b"0123456789")
    for _ in range(3):
        proxy.script.append(("GET", faults.CLOSE_AFTER))
        assert store.get_range("object", 2, 5) == b"234" and not proxy.script
        time.sleep(0.05)
    assert store.get_range("object", 2, 5) == b"234"
    assert store.counters.retries == 0


def test_a_server_that_hangs(server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_connections, "READ_SECONDS", 0.25)
    store = opened(b"0123456789")
    with ThreadPoolExecutor(1) as pool, server.stopped():
        read = pool.submit(store.get_range, "object", 2, 5)
        while not store.counters.retries:
            assert not read.done()
            time.sleep(0.05)
    assert read.result() == b"234"


def test_a_url_that_has_ended_is_signed_anew(proxy: Proxy, signed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharding.storage.s3.GOOD_SECONDS", 4)  # a busy machine takes one of them to ask
    store = opened(b"0123456789")
    proxy.requests.clear()
    time.sleep(5.1)
    assert store.get_range("object", 2, 5) == b"234"
    assert len(proxy.requests) == 2 and presigned_only(proxy)
    assert signed == ["object", "object"]
    monkeypatch.setattr(presigned_reader, "_FRESH_SECONDS", 0.0)  # what is signed from here on is soon too old
    again: S3Store = pickle.loads(pickle.dumps(store))
    assert [again.get_range("object", 0, 5), again.get_range("object", 1, 2)] == [b"01234", b"1"]
    assert len(signed) == 4 and len(proxy.requests) == 4


def test_what_is_refused_is_refused_as_ever(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(b"0123456789")
    with pytest.raises(FileNotFoundError):
        store.get_range("absent", 0, 1)
    for start, end in ((8, 12), (10, 11), (50, 60)):
        with pytest.raises(UserError, match="ends early"):
            store.get_range("object", start, end)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(UserError, match="refused the credentials") as refused:
        open_store(store.url, ask=False).get_range("object", 0, 1)
    assert "Signature=" not in str(refused.value) and "wrong-secret" not in str(refused.value)
    assert store.counters.retries == 0 and presigned_only(proxy) is False


def test_where_no_url_serves_the_client_reads(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    real = S3Store._sign
    monkeypatch.setattr(S3Store, "_sign", lambda store, path: real(store, path).replace("Signature=", "Signature=0"))
    again: S3Store = pickle.loads(pickle.dumps(store))
    proxy.requests.clear()
    proxy.script += [("GET", "none"), ("GET", faults.CUT_ANSWER)]
    assert again.get_range("object", 0, MIB) == DATA[:MIB]
    assert again.get_range("object", 5, 99) == DATA[5:99]
    assert ["Signature=0" in request for request in proxy.requests] == [True, False, True, True, False, False]
    monkeypatch.setattr(S3Store, "_sign", lambda store, path: 1 / 0)
    again = pickle.loads(pickle.dumps(store))
    assert again.get_range("object", 0, MIB) == DATA[:MIB]


def test_without_any_secret(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(b"0123456789")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = open_store("s3://bucket/ranges")
    proxy.requests.clear()
    for start in range(4):
        assert store.get_range("object", start, 5) == b"01234"[start:]
    assert len(proxy.requests) == 4 and not any("ignature" in request for request in proxy.requests)


def test_a_way_through_a_proxy_is_taken(server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.environment["AWS_ENDPOINT_URL"])
    store = opened(b"0123456789")
    proxy.requests.clear()
    assert store.get_range("object", 2, 5) == b"234"
    assert len(proxy.requests) == 1 and not presigned_only(proxy)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What an https server on 127.0.0.1 shows, and the certificate to trust it by."""
    folder = tmp_path_factory.mktemp("identity")
    key, certificate = folder / "key", folder / "certificate"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_over_https(
    server: S3Server, proxy: Proxy, identity: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHECK_SECONDS", 1.0)
    with fault_proxy(server.environment["AWS_ENDPOINT_URL"], identity=identity[0]) as secure:
        monkeypatch.setenv("AWS_ENDPOINT_URL", secure.url)
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        with pytest.raises(UserError, match="does not answer"):  # a server that nobody vouches for
            open_store("s3://bucket/ranges")
        untrusting = open_store("s3://bucket/ranges", retry_seconds=0, ask=False)
        monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.1)
        with pytest.raises(UserError, match="does not answer"):
            untrusting.get_range("object", 0, 1)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(identity[1]))
        store = opened()
        secure.requests.clear()
        secure.sent = 0
        secure.script += [("GET", faults.CUT_ANSWER), ("GET", faults.CLOSE_AFTER)]
        assert store.get_range("object", 0, len(DATA)) == DATA
        assert secure.sent <= len(DATA) and not secure.script
        assert store.get_range("object", 5, 5000) == DATA[5:5000]
        assert presigned_only(secure) and store.counters.retries == 1
        monkeypatch.delenv("AWS_CA_BUNDLE")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"client_kwargs": {"verify": str(identity[1])}})
        store = open_store("s3://bucket/ranges")  # the client alone trusts the server
        assert store.get_range("object", 5, 5000) == DATA[5:5000] and store.counters.retries == 0


def _child(store: S3Store, pipe: Callable[[object], None]) -> None:
    pipe((store.get_range("object", 7, 5000) == DATA[7:5000], store.counters.retries))


def test_a_forked_child_has_its_own_connection(proxy: Proxy) -> None:
    store = opened(DATA[:MIB])
    here, there = multiprocessing.Pipe()
    children = [multiprocessing.get_context("fork").Process(target=_child, args=(store, there.send)) for _ in range(2)]
    for child in children:
        child.start()
    for number in range(50):
        assert store.get_range("object", number, 9000) == DATA[number:9000]
    assert [here.recv() for _ in children] == [(True, 0)] * 2
    for child in children:
        child.join()
    assert store.get_range("object", 3, 4) == DATA[3:4] and store.counters.retries == 0


def test_a_copy_counts_from_nought_and_holds_no_url(proxy: Proxy) -> None:
    store = opened(DATA[:MIB])
    assert store.counters.requests == 2 and store.counters.bytes == 1
    kept = pickle.dumps(store)
    assert b"X-Amz" not in kept and SECRET.encode() not in kept
    again = pickle.loads(kept)
    assert (again.counters.requests, again.counters.bytes) == (0, 0)
    assert again.get_range("object", 10, 30) == DATA[10:30] and again.counters.bytes == 20
    assert store.counters.bytes == 1


def test_a_directory_s_reads_are_counted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("object", b"0123456789")
    assert store.get_range("object", 2, 5) == b"234" and store.get("object") and store.get_tail("object", 3)
    assert (store.counters.requests, store.counters.bytes) == (3, 16)
    assert pickle.loads(pickle.dumps(store)).counters.bytes == 0
    (tmp_path / "object").write_bytes(b"abcdefghij")
    assert store.get_range("object", 2, 5) == b"cde"
    store.put("object", b"ABCDEFGHIJ")
    assert store.get_range("object", 2, 5) == b"CDE"
