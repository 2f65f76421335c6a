"""Ray's tokens: a cluster of this machine has one that only its user can read; any other wants the user's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.launch.on_ray.auth import authenticate, is_here, own_token
from sharding.base.errors import UserError

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    "address",
    ["auto", "local", "127.0.0.1:6379", "localhost:6379", "[::1]:6379", "ray://127.0.0.1:10001", "127.8.0.1:1"],
)
def test_of_this_machine(address: str) -> None:
    assert is_here(address)
    authenticate(address)
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head.cluster:6379", "ray://10.0.0.1:10001", "[fe80::1]:6379"])
def test_another_machines_wants_a_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_here(address)
    with pytest.raises(UserError) as refused:
        authenticate(address)
    assert "no token" in refused.value.what and address in refused.value.where
    assert "get-auth-token --generate" in refused.value.remedy
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    authenticate(address)


def test_a_token_that_is_there_is_sent(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("ab" * 32)
    authenticate("10.0.0.1:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_cluster_of_ones_own_leaves_no_token_and_shows_it_to_nobody(home: Path) -> None:
    with own_token():
        file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert os.environ["RAY_AUTH_MODE"] == "token" and len(file.read_text()) == 64
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not file.exists() and not any(name in os.environ for name in NAMES) and not (home / ".ray").exists()


def test_what_the_user_says_of_tokens_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with own_token():
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
