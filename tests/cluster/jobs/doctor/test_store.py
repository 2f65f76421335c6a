"""Stores as the doctor tries them: a real S3 server, one that refuses, one that overwrites, a directory."""

from __future__ import annotations

from email.utils import formatdate
from pathlib import Path

import pytest

from cluster.jobs.doctor import store as doctor_store
from cluster.jobs.doctor.machine_checks import Check, findings
from cluster.jobs.doctor.store import check_store, check_store_clock, clock_skew, try_store
from sharding.storage.local import LocalStore
from sharding.storage.s3 import S3Store
from sharding.storage.store import open_store
from tests.support.s3 import free_port


@pytest.fixture()
def bucket(s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3[0].items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3[1]}"


def test_no_store() -> None:
    assert check_store(None).state == check_store_clock(None).state == "skipped"


def test_a_directory(tmp_path: Path) -> None:
    verdict = check_store(str(tmp_path / "not" / "yet"))
    assert verdict.state == "ok" and "conditional put" in verdict.what
    assert [*tmp_path.iterdir()] == []
    assert check_store_clock(str(tmp_path)).state == "skipped"


@pytest.mark.slow
def test_s3(bucket: str) -> None:
    url = f"{bucket}/videos"
    assert check_store(url).state == "ok"
    assert check_store_clock(url).state == "ok"
    assert open_store(url).list() == []


@pytest.mark.slow
def test_a_wrong_secret_is_refused_and_the_clock_is_read_all_the_same(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    [result] = findings([Check("store", lambda: check_store(bucket))])
    assert result.state == "wrong" and "refused the credentials" in result.what and "AWS_ACCESS_KEY_ID" in result.remedy
    skew = clock_skew(bucket)
    assert skew is not None and abs(skew) < 60


@pytest.mark.slow
def test_a_bucket_that_is_missing(bucket: str) -> None:
    [result] = findings([Check("store", lambda: check_store(f"{bucket}-of-nobody/x"))])
    assert result.state == "wrong" and "no such bucket" in result.what


@pytest.mark.slow
def test_a_server_that_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    results = findings([Check("store", lambda: check_store(bucket)), Check("clock", lambda: check_store_clock(bucket))])
    assert [(each.state, "does not answer" in each.what) for each in results] == [("wrong", True)] * 2


def test_a_store_that_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = LocalStore.put
    monkeypatch.setattr(LocalStore, "put", lambda self, path, data, create=False: put(self, path, data))
    assert try_store(str(tmp_path)).winners == 4
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("method", ["get", "list", "delete"])
def test_a_store_that_lies(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lies = {"get": lambda *_: b"", "list": lambda *_: [], "delete": lambda *_: None}
    monkeypatch.setattr(LocalStore, method, lies[method])
    assert try_store(str(tmp_path)).problem != ""


@pytest.mark.parametrize("offset", [-3600, 3600])
def test_a_clock_that_is_off(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    date = formatdate(now + offset, usegmt=True)
    answer = {"ResponseMetadata": {"HTTPHeaders": {"date": date}}}
    monkeypatch.setattr(S3Store, "_first_name", lambda self: answer)
    monkeypatch.setattr(doctor_store.time, "time", lambda: now)
    skew = clock_skew("s3://bucket")
    assert skew is not None and abs(skew + offset) <= 1
