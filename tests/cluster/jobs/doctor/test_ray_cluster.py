"""Ray clusters as the doctor meets them: one that wants a token, and one that is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.jobs.doctor.finding import Finding
from cluster.jobs.doctor.machine_checks import Check, findings
from cluster.jobs.doctor.ray_cluster import check_ray, check_ray_cluster
from tests.support.commands import ray_elsewhere
from tests.support.s3 import free_port

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

TOKEN = "ab" * 32
NAMES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ray_elsewhere(tmp_path_factory.mktemp("elsewhere"), token=TOKEN) as environment:
        yield environment["RAY_ADDRESS"]


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def look() -> Finding:
    return next(findings([Check("ray cluster", check_ray_cluster)]))


def test_ray_itself() -> None:
    assert check_ray().state == "ok"
    assert check_ray_cluster().state == "skipped"


def test_a_cluster_of_the_same_versions(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    result = look()
    assert result.state == "ok" and "1 nodes answer" in result.what, result


def test_a_cluster_that_takes_no_token_of_ours(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "cd" * 32)
    result = look()
    assert result.state == "wrong" and "does not take this token" in result.what, result
    assert "ray get-auth-token" in result.remedy


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    result = look()
    assert result.state == "wrong" and "nothing answers" in result.what, result
    assert "ray start --head" in result.remedy
