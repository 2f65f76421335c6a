"""`reelscale doctor` as a whole: on this machine as it is, and where much of it is broken."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Say

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]  # torch and Ray, imported anew


@pytest.fixture(autouse=True)
def _by_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture()
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_in_text(say: Say, tmp_path: Path) -> None:
    done = say("doctor", "--store", "store", "--port", "0")
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "warning", "WRONG", "skipped", "remedy:"}, done
    assert "store: read, write, conditional put, list and delete work" in done.stdout
    assert "encodes and decodes H.264" in done.stdout and "sum 4 MiB in" in done.stdout
    assert done.returncode == (1 if "WRONG" in done.stdout else 0), done
    assert " ok" in lines[-1] and "skipped" in lines[-1]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("few_files")
def test_in_json_where_much_is_broken(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (long := tmp_path / ("x" * 60)).mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (broken := tmp_path / "broken" / "ray").mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half an installation')")
    monkeypatch.syspath_prepend(str(broken.parent))
    done = say("doctor", "--json", "--run", "file/runs", "--store", "file", "--port", "0")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    results = {each["name"]: each for each in json.loads(done.stdout)}
    states = {name: each["state"] for name, each in results.items()}
    wrong = {"open files", "run folder", "store", "ray"}
    assert {name for name, state in states.items() if state == "wrong"} - {"store's clock"} == wrong, results
    assert states["temporary folder"] == states["deepspeed"] == "warning", results
    assert states["python"] == states["video"] == states["all-reduce"] == "ok", results
    assert "half an installation" in results["ray"]["what"] and "a file, not a directory" in results["store"]["what"]
    assert all(each["remedy"] for each in results.values() if each["state"] in ("wrong", "warning"))
    assert all(set(each) == {"name", "state", "what", "remedy"} for each in results.values())
