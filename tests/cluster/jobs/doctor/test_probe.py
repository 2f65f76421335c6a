"""A trial in a child process: what it returns, raises, or dies of, and that it cannot hang the doctor."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cluster.jobs.doctor.probe import TrialFailed, tried, tried_by_name
from sharding.base.errors import UserError

SECONDS = 60.0


def doubled(number: int) -> int:
    print("words of a library")
    return 2 * number


def mistaken() -> None:
    raise UserError("it is closed", "the door", "open it")


def broken() -> None:
    raise RuntimeError("no kernel\nof this kind, token=abcdefgh")


def killed() -> None:
    sys.stderr.write("a library's last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def hanging(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    time.sleep(3600)


@pytest.fixture(autouse=True)
def _in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child imports this file by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for function in (doubled, mistaken, broken, killed, hanging):
        monkeypatch.setattr(function, "__module__", Path(__file__).stem)


def test_a_result(capfd: pytest.CaptureFixture[str]) -> None:
    assert tried(doubled, 21, seconds=SECONDS) == 42
    assert capfd.readouterr() == ("", "")


def test_a_mistake_is_passed_on() -> None:
    with pytest.raises(UserError) as caught:
        tried(mistaken, seconds=SECONDS)
    assert (caught.value.what, caught.value.where, caught.value.remedy) == ("it is closed", "the door", "open it")


def test_an_error_is_one_line_without_secrets() -> None:
    with pytest.raises(TrialFailed) as caught:
        tried(broken, seconds=SECONDS)
    assert str(caught.value) == "RuntimeError: no kernel of this kind, token=***"


def test_a_module_that_is_missing() -> None:
    with pytest.raises(TrialFailed, match="ModuleNotFoundError: No module named 'nowhere'"):
        tried_by_name("nowhere", "function", seconds=SECONDS)


def test_a_crash_names_the_signal_and_the_last_words() -> None:
    with pytest.raises(TrialFailed, match="ended by SIGKILL: a library's last words"):
        tried(killed, seconds=SECONDS)


def test_a_hang_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(TrialFailed, match="it hung: no answer within 5 s"):
        tried(hanging, str(note), seconds=5.0)
    if note.exists():  # a busy machine may not have come so far
        assert not Path(f"/proc/{note.read_text()}").exists()
