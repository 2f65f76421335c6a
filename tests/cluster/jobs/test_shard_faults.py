"""Whatever breaks around a `shard` command, its shards are those of an undisturbed run, whole at every moment."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharding.base.errors import UserError
from sharding.format.record import list_records
from sharding.storage.store import Store, open_store
from tests.cluster.conftest import SMALL
from tests.sharding.conftest import FOOTAGE
from tests.support.commands import ROOT, gone, reelscale, refused, running, succeeded
from tests.support.kill_at_stage import striking
from tests.support.network_faults import fault_proxy
from tests.support.s3 import S3Server

EACH = [*SMALL, "launcher=none", "workers=2", "videos_per_shard=2"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store made by a command that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeeded(reelscale("shard", corpus, folder / "store", *EACH, folder=folder))
    return content(open_store(str(folder / "store")))


def content(store: Store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.list("")}


@contextmanager
def read_all_the_while(store: Store, expected: dict[str, bytes]) -> Iterator[None]:
    """Inside the `with` a thread reads the store; whatever it sees must equal the final store's files."""
    over = threading.Event()

    def read() -> tuple[int, list[str]]:
        count, wrong = 0, []
        while not over.wait(0.05):
            for path in store.list(""):
                count += 1
                if store.get(path) != expected.get(path):
                    wrong.append(path)
        return count, wrong

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            yield
        finally:
            over.set()
        count, wrong = reader.result()  # raises what the reader raised
    assert count and wrong == []


def test_a_reader_that_fails_or_reads_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(AssertionError), read_all_the_while(store, {}):
        time.sleep(0.2)
    store.put("one", b"1")
    with pytest.raises(AssertionError), read_all_the_while(store, {"one": b"2"}):
        time.sleep(0.2)

    def get(store: Store, path: str) -> bytes:
        raise UserError("the store does not answer", path, "wait")

    monkeypatch.setattr(type(store), "get", get)
    with pytest.raises(UserError, match="does not answer"), read_all_the_while(store, {"one": b"1"}):
        time.sleep(0.2)


@pytest.fixture()
def on_s3(s3_running: S3Server, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """(corpus, store) in a bucket of a server that tests may stop."""
    for name, value in s3_running.environment.items():
        monkeypatch.setenv(name, value)
    held = open_store(f"s3://{s3_running.bucket}/corpus")
    for path in corpus.rglob("*.mp4"):
        held.put_file(path.relative_to(corpus).as_posix(), path)
    yield held.url, f"s3://{s3_running.bucket}/store-{time.time_ns()}"


def planned_alike(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Assert that two stores are equal but for the corpus' path in the plan's small head."""
    assert files.keys() == expected.keys()
    assert [path for path in files if files[path] != expected[path] and path != "plan/g0.json"] == []


@pytest.mark.slow
def test_slow_downs_resets_and_cut_bodies(
    on_s3: tuple[str, str], s3_running: S3Server, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    corpus, address = on_s3
    store = open_store(address)
    succeeded(reelscale("shard", corpus, f"{address}-calm", *EACH, folder=tmp_path, environment=s3_running.environment))
    calm = content(open_store(f"{address}-calm"))
    planned_alike(calm, undisturbed)
    with fault_proxy(s3_running.environment["AWS_ENDPOINT_URL"], rate=0.1, seed=3) as proxy:
        environment = {**s3_running.environment, "AWS_ENDPOINT_URL": proxy.url}
        with read_all_the_while(store, calm):
            succeeded(reelscale("shard", corpus, address, *EACH, folder=tmp_path, environment=environment))
        assert sum(proxy.counts.values()) >= 5, proxy.counts
    assert content(store) == calm


@pytest.mark.slow
def test_a_server_that_is_gone_for_twenty_seconds(
    on_s3: tuple[str, str], s3_running: S3Server, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    corpus, address = on_s3
    store = open_store(address)
    with running("shard", corpus, address, *EACH, folder=tmp_path, environment=s3_running.environment) as command:
        command.until(lambda: store.list("plan/"))
        s3_running.kill()
        time.sleep(20)
        s3_running.start()
        assert command.exit_code() == 0, command.said
    planned_alike(content(store), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["read", "transcode", "decoder", "tar", "upload", "before the record"])
def test_a_worker_killed_at_any_stage(stage: str, corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (scratch := tmp_path / "scratch").mkdir()
    environment = {"TMPDIR": str(scratch), **striking(stage, tmp_path / "hook", ROOT)}
    with (
        read_all_the_while(store, undisturbed),
        running("shard", corpus, store.url, *EACH, folder=tmp_path, environment=environment) as command,
    ):
        assert command.exit_code() == 0, command.said
        assert (tmp_path / "hook" / "struck").exists()
        assert gone(list(command.descendants()))
    assert content(store) == undisturbed
    assert list(scratch.glob("reelscale-*")) == []


@pytest.mark.slow
def test_a_worker_of_ray_killed_in_mid_video(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    environment = striking("transcode", tmp_path / "hook", ROOT)
    each = [*SMALL, "launcher=ray", "workers=2", "videos_per_shard=2"]
    succeeded(reelscale("shard", corpus, store.url, *each, folder=tmp_path, environment=environment))
    assert (tmp_path / "hook" / "struck").exists()
    assert content(store) == undisturbed


@pytest.mark.slow
def test_a_worker_killed_while_it_uploads_to_s3(
    on_s3: tuple[str, str], s3_running: S3Server, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    corpus, address = on_s3
    environment = {**s3_running.environment, **striking("upload to s3", tmp_path / "hook", ROOT)}
    succeeded(reelscale("shard", corpus, address, *EACH, folder=tmp_path, environment=environment))
    assert (tmp_path / "hook" / "struck").exists()
    planned_alike(content(open_store(address)), undisturbed)


@pytest.mark.slow
def test_two_commands_at_once(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    arguments = ("shard", corpus, store.url, *EACH)
    with (
        read_all_the_while(store, undisturbed),
        running(*arguments, folder=tmp_path) as first,
        running(*arguments, folder=tmp_path) as second,
    ):
        assert (first.exit_code(), second.exit_code()) == (0, 0), first.said + second.said
    assert content(store) == undisturbed


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["scratch", "store"])
def test_a_full_disk(which: str, corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(248 * 1024))
    store = small_disk / "store" if which == "store" else tmp_path / "store"
    environment = {"TMPDIR": str(small_disk)} if which == "scratch" else {}
    result = reelscale("shard", corpus, store, *EACH, folder=tmp_path, environment=environment)
    refused(result, "No space left on device")
    found = content(open_store(str(store)))
    assert [path for path in found if found[path] != undisturbed[path]] == []
    (small_disk / "filler").unlink()
    succeeded(reelscale("shard", corpus, store, *EACH, folder=tmp_path, environment=environment))
    assert content(open_store(str(store))) == undisturbed


@pytest.mark.slow
def test_files_that_may_not_grow(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """A stand-in for a full disk, where none can be mounted."""
    store = tmp_path / "store"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
    try:
        result = reelscale("shard", corpus, store, *EACH, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    refused(result, os.strerror(27))
    succeeded(reelscale("shard", corpus, store, *EACH, folder=tmp_path))
    assert content(open_store(str(store))) == undisturbed


_CLUSTER = """
import sys, ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("gone", flush=True)
cluster.shutdown()
"""


def test_a_node_that_dies(tmp_path: Path) -> None:
    """Two nodes of one core; the shard that the dead one was making is made by the other."""
    environment = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | environment
    nodes = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=variables,
        start_new_session=True,
    )
    assert nodes.stdin is not None and nodes.stdout is not None
    corpus = tmp_path / "corpus"
    for number in range(6):
        folder = corpus / "train" / "car"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mp4").symlink_to(FOOTAGE / "bigbuckbunny.mp4")
    store = open_store(str(tmp_path / "store"))
    try:
        address = nodes.stdout.readline().strip()
        each = [*SMALL, "launcher=ray", "videos_per_shard=1"]
        where = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        two = reelscale("shard", corpus, store.url, *each, "decoder_threads=2", folder=tmp_path, environment=where)
        refused(two, "no node has 2 CPUs", "decoder_threads=1 or less")
        with running("shard", corpus, store.url, *each, folder=tmp_path, environment=where) as command:
            command.until(lambda: list_records(store))
            nodes.stdin.write("one\n")
            nodes.stdin.flush()
            assert nodes.stdout.readline() == "gone\n"
            assert len(list_records(store)) < 6
            assert command.exit_code() == 0, command.said
    finally:
        nodes.stdin.close()
        nodes.wait(timeout=60)
    assert len(list_records(store)) == 6 and sum(path.endswith(".tar") for path in store.list("")) == 6
