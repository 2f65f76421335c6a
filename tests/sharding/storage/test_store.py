"""The store's contract, on a directory, on a real S3 server and on another file system of fsspec's."""

from __future__ import annotations

import errno
import os
import pickle
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.base.errors import StoreUnreachable, UserError
from sharding.base.redact import require_no_password
from sharding.corpora.entries.roots import normalised_root
from sharding.storage.store import Store, open_store
from tests.support.s3 import free_port


@pytest.fixture(params=["directory", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    if request.param == "memory":  # any other file system of fsspec's
        return open_store(f"memory://{tmp_path.name}")
    return open_store(s3_url(request, monkeypatch))


def s3_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    environment, bucket = request.getfixturevalue("s3")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/{request.node.name.replace('[', '-').rstrip(']')}"


def test_put_get_list(store: Store, tmp_path: Path) -> None:
    assert store.list("") == [] == store.list("train/")
    data = bytes(range(256)) * 10
    store.put("train/a-00.tar", data)
    store.put("train/deep/b", b"")
    store.put("val/c", b"c")
    local = tmp_path / "local"
    local.write_bytes(b"x" * 100_000)
    store.put_file("train/a-01.tar", local)
    assert store.get("train/a-00.tar") == data
    assert store.get_range("train/a-00.tar", 250, 260) == data[250:260]
    assert store.get_range("train/a-00.tar", 5, 5) == b""
    assert store.list("") == ["train/a-00.tar", "train/a-01.tar", "train/deep/b", "val/c"]
    assert store.list("train/a") == ["train/a-00.tar", "train/a-01.tar"]
    assert store.list("val/") == ["val/c"]
    assert store.size("train/a-01.tar") == 100_000
    assert store.exists("val/c") and not store.exists("val/d") and not store.exists("val")
    store.put("val/c", b"again")
    assert store.get("val/c") == b"again" and store.size("val/c") == 5
    store.get_file("train/a-01.tar", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == local.read_bytes()


def test_walk_tells_sizes(store: Store) -> None:
    assert list(store.walk()) == list(store.walk("train/")) == []
    for path, size in (("train/a", 3), ("train/deep/er/b", 0), ("train2", 7), ("val", 1)):
        store.put(path, b"x" * size)
    assert sorted(store.walk()) == [("train/a", 3), ("train/deep/er/b", 0), ("train2", 7), ("val", 1)]
    assert sorted(store.walk("train/")) == [("train/a", 3), ("train/deep/er/b", 0)]
    assert sorted(store.walk("train")) == [("train/a", 3), ("train/deep/er/b", 0), ("train2", 7)]
    assert sorted(store.walk("train/de")) == [("train/deep/er/b", 0)]
    assert [path for path, _ in sorted(store.walk())] == store.list()


def test_a_neighbour_is_not_walked(store: Store) -> None:
    neighbour = open_store(store.url + "2")
    neighbour.put("theirs", b"1")
    store.put("ours", b"1")
    assert store.list() == ["ours"]


def test_the_tail_of_an_object(store: Store) -> None:
    data = bytes(range(200))
    store.put("object", data)
    store.put("empty", b"")
    assert store.get_tail("object", 8) == (data[-8:], 200)
    assert store.get_tail("object", 200) == store.get_tail("object", 65536) == (data, 200)
    assert store.get_tail("object", 0) == (b"", 200)
    assert store.get_tail("empty", 8) == (b"", 0)
    with pytest.raises(FileNotFoundError):
        store.get_tail("absent", 8)


def test_a_download_replaces_the_whole_file_or_nothing(store: Store, tmp_path: Path) -> None:
    store.put("object", b"new")
    store.put("empty", b"")
    place = tmp_path / "downloads"
    place.mkdir()
    (place / "file").write_bytes(b"older and longer")
    with pytest.raises(FileNotFoundError):
        store.get_file("absent", place / "file")
    assert (place / "file").read_bytes() == b"older and longer"
    store.get_file("object", place / "file")
    store.get_file("empty", place / "other")
    assert (place / "file").read_bytes() == b"new" and (place / "other").read_bytes() == b""
    with pytest.raises(UserError, match="download cannot be written"):
        store.get_file("object", tmp_path / "no folder" / "file")
    assert sorted(path.name for path in place.iterdir()) == ["file", "other"]


def test_create_only_once(store: Store) -> None:
    store.put("record", b"first", create=True)
    with pytest.raises(FileExistsError):
        store.put("record", b"second", create=True)
    assert store.get("record") == b"first"
    assert store.list("") == ["record"]


def test_of_many_creators_one_wins(store: Store) -> None:
    won = []

    def create(number: int) -> None:
        try:
            store.put("one", str(number).encode(), create=True)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.get("one") == str(won[0]).encode()


def test_absent_and_short(store: Store) -> None:
    store.put("short", b"12345")
    for call in (store.get, store.size, lambda path: store.get_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            call("absent")
    with pytest.raises(UserError, match="ends early"):
        store.get_range("short", 3, 9)
    with pytest.raises(UserError, match="ends early"):
        store.get_range("short", 7, 9)


def test_delete(store: Store) -> None:
    store.put("a/b", b"1")
    store.put("a/c", b"2")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("none/at all")
    assert store.list("") == ["a/c"]
    store.put("a/b", b"3", create=True)
    assert store.get("a/b") == b"3"


NO_LINK = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@pytest.mark.parametrize("number", NO_LINK)
@pytest.mark.parametrize("rename", ["atomic", "absent", "refused"])
def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, rename: str) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, "no hard links here")

    monkeypatch.setattr("os.link", fail)
    if rename == "absent":
        monkeypatch.setattr("sharding.base.atomic.ctypes.CDLL", lambda *_, **__: object())
    elif rename == "refused":
        monkeypatch.setattr("sharding.base.atomic._rename_noreplace", lambda *_: fail())
    store = open_store(str(tmp_path / "store"))
    test_create_only_once(store)
    test_of_many_creators_one_wins(store)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["one", "record"]


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)
    test_create_only_once(open_store(str(tmp_path / "store")))


def test_a_copy_in_another_process_is_the_same_store(store: Store) -> None:
    store.put("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again.url == store.url and again.get("a") == b"1"


def test_a_failed_upload_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put_file("part", tmp_path / "absent")
    assert store.list("") == []


def test_wrong_secret_bucket_and_endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3_url(request, monkeypatch)
    with pytest.raises(UserError, match="no such bucket"):
        open_store("s3://another-bucket/prefix")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="refused the credentials"):
        open_store(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnreachable, match="does not answer"):
        open_store(url)


FULL = """
import os, resource, sys
from pathlib import Path
from sharding.base.errors import UserError
from sharding.storage.store import open_store
store = open_store(sys.argv[1])
store.put("kept", b"small")
Path(sys.argv[2]).write_bytes(bytes(3 * 2**20))
for write in (lambda: store.put("big", bytes(3 * 2**20)), lambda: store.put_file("big", sys.argv[2])):
    try:
        write()
    except UserError as error:
        print(error.what, error.where)
print(store.list(), sorted(os.listdir(sys.argv[1])))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    program = shlex.join([sys.executable, "-c", FULL, str(disk), str(tmp_path / "local")])
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && {program}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = f"the store cannot be used: No space left on device {disk}/big\n"
    assert done.stdout == f"{told}{told}['kept'] ['kept']\n"


def test_impossible_addresses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for url in ("", str(tmp_path / "file"), "s3://", "nonsense://x/y"):
        with pytest.raises(UserError):
            open_store(url)
    with pytest.raises(UserError, match="cannot be used"):
        open_store(str(tmp_path)).put("file/below", b"x")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:PA55WORD@bucket/x", "s3://AKIA:PA55/WORD+@bucket/x", "s3://AKIA:12/PA55WORD@bucket",
        "s3://:PA55WORD@bucket", "sftp://me:PA55WORD@host:22/x", "s3://AKIA:PA55WORD", "memory://me:PA55WORD@x/a@b",
        "simplecache::s3://me:PA55WORD@bucket", "file://me:PA55WORD@host/x", "s3://me:PA55WORD@b/x?password=PA55WORD",
    ],
)  # fmt: skip
def test_an_address_with_a_password_is_refused(url: str) -> None:
    for refuse in (open_store, normalised_root):
        with pytest.raises(UserError, match="holds a password") as caught:
            refuse(url)
        assert "PA55" not in str(caught.value) and "WORD" not in str(caught.value)
        assert caught.value.__cause__ is None and "AWS_" in caught.value.remedy


@given(st.from_regex(r"[A-Z0-9/+=@:]{12,40}", fullmatch=True))
def test_no_password_is_shown(password: str) -> None:
    with pytest.raises(UserError) as caught:
        require_no_password(f"s3://me:{password}@bucket/prefix")
    assert password not in str(caught.value) and "***@bucket/prefix" in caught.value.where


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/me:pw@x", "sftp://me@host:22/x", "abfs://container@account.dfs.core.windows.net/x",
        "webhdfs://host:9870/x", "sftp://[::1]:22/x", "/data/me:pw@x", "me:pw@x", "file:///data/me:pw@x",
    ],
)  # fmt: skip
def test_an_address_without_a_password_is_let_through(url: str) -> None:
    require_no_password(url)
