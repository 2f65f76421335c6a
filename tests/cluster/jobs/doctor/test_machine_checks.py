"""Each check stands alone: whatever is missing or broken is a finding, and never the end of the others."""

from __future__ import annotations

import importlib.metadata
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.jobs.doctor import devices, folders, limits, network, versions
from cluster.jobs.doctor.finding import Verdict, ok
from cluster.jobs.doctor.machine_checks import Check, all_checks, findings
from cluster.jobs.doctor.probe import TrialFailed
from sharding.base.errors import UserError


def failing(error: Exception) -> Check:
    def run() -> Verdict:
        raise error

    return Check(type(error).__name__, run, "mend it")


def test_errors_are_findings_and_the_rest_goes_on() -> None:
    errors = [UserError("it is shut", "the door", "open it"), TrialFailed("it hung"), OSError(5, "disk\non fire")]
    begun: list[str] = []
    results = [*findings([*map(failing, errors), Check("last", lambda: ok("well"))], begun.append)]
    assert begun == ["UserError", "TrialFailed", "OSError", "last"] == [each.name for each in results]
    assert [each.state for each in results] == ["wrong", "wrong", "wrong", "ok"]
    assert [each.what for each in results] == [
        "it is shut (the door)", "it hung", "OSError: [Errno 5] disk on fire", "well",
    ]  # fmt: skip
    assert [each.remedy for each in results] == ["open it", "mend it", "mend it", ""]


def test_names_are_unique() -> None:
    names = [check.name for check in all_checks(None, 9480, "runs")]
    assert len(names) == len(set(names)) > 15


def test_without_an_installed_reelscale(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("requires", "metadata", "version"):
        monkeypatch.setattr(importlib.metadata, function, missing)
    checks = [Check("python", versions.check_python, "install"), Check("torch", versions.check_torch, "install")]
    assert [(each.state, each.remedy) for each in findings(checks)] == [("wrong", "install")] * 2
    assert versions.installed_version("torch") is None


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))  # of this process, and so of the child
    check = next(each for each in all_checks(None, 0, "runs") if each.name == "gpus")
    result = next(findings([check]))
    assert result.state == "wrong" and "libcudart.so.13" in result.what
    assert "pip install -c constraints.txt torch" in result.remedy


def test_a_gpu_without_its_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_files", list)
    assert devices.check_triton().state == "skipped"


@pytest.fixture()
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_few_open_files() -> None:
    verdict = limits.check_open_files()
    assert verdict.state == "wrong" and "64 at a time" in verdict.what and "ulimit -n" in verdict.remedy


def test_no_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "_SHM", tmp_path / "gone")
    monkeypatch.setattr(limits, "installed_version", lambda name: "2.60.0")
    assert limits.check_shared_memory().state == "warning"


def test_the_memory_of_this_machine() -> None:
    verdict = limits.check_memory()
    assert "are free" in verdict.what


def test_a_long_tmpdir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    verdict = folders.check_temporary_folder()
    assert verdict.state == "warning" and "too long" in verdict.what and "RAY_TMPDIR" in verdict.remedy
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert folders.check_temporary_folder().state == "ok"


def test_folders_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    verdict = folders.check_run_folder(str(tmp_path / "file" / "runs"))
    assert verdict.state == "wrong" and "is no folder" in verdict.what and "run=" in verdict.remedy
    monkeypatch.setenv("REELSCALE_CACHE", "/proc/cache")
    assert folders.check_cache_folder().state == "wrong"
    assert "REELSCALE_CACHE" in folders.check_cache_folder().remedy


def test_a_run_folder_is_not_made(tmp_path: Path) -> None:
    assert str(tmp_path / "new" / "runs") in folders.check_run_folder(str(tmp_path / "new" / "runs")).what
    assert [*tmp_path.iterdir()] == []


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        verdict = network.check_ports(port)
        assert verdict.state == "warning" and f"port {port} is taken" in verdict.what
    assert network.check_ports(0).state == "ok"
