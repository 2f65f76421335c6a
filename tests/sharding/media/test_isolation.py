"""A child process that crashes, hangs and is left behind, and a worker that is none the worse for it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from av.error import FFmpegError

from sharding.base import child_process
from sharding.base.errors import UserError
from sharding.media import isolation, spool
from sharding.media.input.bad_video import BadVideo
from sharding.media.isolation import ChildDied, ChildStalled, Isolated
from tests.support.processes import gone
from tests.support.videos import poison


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with Isolated(30) as found:
        yield found


def child(isolated: Isolated) -> int:
    (pid,) = isolated.run(poison.whoami)
    return pid


def test_items_come_one_by_one_from_one_child(isolated: Isolated) -> None:
    assert child(isolated) == child(isolated) != os.getpid()
    assert list(isolated.run(poison.numbers, 2000)) == list(range(2000))
    assert list(isolated.run(poison.numbers, 0)) == []
    assert [*isolated.run(poison.score)] == ["500"]


def test_a_child_starts_quickly() -> None:
    began = time.monotonic()
    with Isolated(30) as isolated:
        pid = child(isolated)
        assert time.monotonic() - began < 3  # a third of that with the machine to itself
    assert gone(pid, 0.1)


@pytest.mark.parametrize("size", [0, 10, 40 * 2**20])
def test_large_items(isolated: Isolated, tmp_path: Path, size: int) -> None:
    for items in (
        isolated.run(poison.large, 3, size),
        isolated.all_of(poison.large, 3, size, folder=tmp_path),
    ):
        assert [item == bytes([number]) * size for number, item in enumerate(items)] == [True] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_told_and_survived(isolated: Isolated, number: signal.Signals) -> None:
    got = []
    with pytest.raises(ChildDied) as error:
        got.extend(isolated.run(poison.die, number, 0))
    assert error.value.code == -number and str(error.value) == number.name
    with pytest.raises(ChildDied):
        for item in isolated.run(poison.die, number, 3):
            got.append(item)
    assert got == [0, 1, 2]
    assert list(isolated.run(poison.numbers, 3)) == [0, 1, 2]
    with pytest.raises(ChildDied, match="exit 7"):
        list(isolated.run(poison.leave, 7))


def test_a_death_between_two_videos_is_no_video_s_fault(isolated: Isolated) -> None:
    pid = child(isolated)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert child(isolated) != pid


def test_a_crash_is_tried_once_more(isolated: Isolated, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    items = isolated.all_of(poison.die_at_first, tmp_path / "mark", folder=tmp_path / "spool")
    assert list(items) == ["second", "end"]
    with pytest.raises(BadVideo) as error:
        isolated.all_of(poison.die, signal.SIGSEGV, 2, folder=tmp_path / "spool")
    assert (error.value.kind, error.value.detail) == ("crashed", "SIGSEGV, twice")
    with pytest.raises(BadVideo, match="memory") as error:
        isolated.all_of(poison.die, signal.SIGKILL, 0, folder=tmp_path / "spool")
    assert error.value.kind == "crashed"
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.slow
def test_a_stall_ends_in_time(tmp_path: Path) -> None:
    with Isolated(1.0) as isolated:
        pid = child(isolated)
        began = time.monotonic()
        with pytest.raises(ChildStalled):
            list(isolated.run(poison.hang))
        assert 1 <= time.monotonic() - began < 5 and gone(pid, 0.1)
        (frames,) = isolated.run(poison.slow_but_alive, 1.6)
        assert frames > 100
        with pytest.raises(BadVideo, match="hangs") as error:
            isolated.all_of(poison.hang, folder=tmp_path)
        assert (error.value.kind, error.value.detail) == ("stalled", "no frame in 1 seconds")
        with pytest.raises(BadVideo, match="hangs"):
            isolated.all_of(poison.die_then_hang, tmp_path / "mark", folder=tmp_path)


def test_heartbeats_are_few(isolated: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    real = isolation.Connection.recv_bytes
    monkeypatch.setattr(isolation.Connection, "recv_bytes", lambda pipe: kinds.append(real(pipe)) or kinds[-1])
    list(isolated.run(poison.slow_but_alive, 1.0))
    assert 3 <= kinds.count(b"alive") <= 6


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("bad", BadVideo, "a detail"), ("user", UserError, "remedy: remedy"), ("memory", MemoryError, "much"),
        ("absent", FileNotFoundError, "No such file"), ("reset", ConnectionResetError, "reset by peer"),
        ("end", RuntimeError, "EOFError: the end"), ("value", RuntimeError, "poison.py[\\s\\S]*ValueError: a bug"),
    ],
)  # fmt: skip
def test_errors_come_as_they_were(isolated: Isolated, kind: str, error: type[Exception], message: str) -> None:
    pid = child(isolated)
    with pytest.raises(error, match=message) as found:
        list(isolated.run(poison.fail, kind))
    assert type(found.value) is error
    assert child(isolated) == pid


def test_ffmpeg_s_errors_come_too(isolated: Isolated) -> None:
    with pytest.raises(FileNotFoundError, match="No such file") as error:
        list(isolated.run(poison.open_nothing))
    assert isinstance(error.value, FFmpegError) and error.value.filename == "absent.mp4"


def test_who_wants_no_more_leaves(isolated: Isolated) -> None:
    for number in isolated.run(poison.numbers, 10**9):
        if number == 5:
            break
    assert list(isolated.run(poison.numbers, 2)) == [0, 1]
    kept = isolated.run(poison.numbers, 10**9)
    assert next(kept) == 0
    assert list(isolated.run(poison.numbers, 2)) == [0, 1]
    pid = child(isolated)
    with pytest.raises(ChildDied):
        list(kept)
    assert child(isolated) == pid


def test_a_full_disk_is_the_user_s(isolated: Isolated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    with pytest.raises(UserError, match="clips cannot be kept"):
        isolated.all_of(poison.large, 10**6, 2000, folder=tmp_path / "absent")
    assert child(isolated)


def test_a_child_that_cannot_start_is_no_video_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Isolated(30) as isolated:
        monkeypatch.setattr(child_process, "_PROGRAM", "import sys; sys.exit(9)")
        with pytest.raises(UserError, match="cannot start: exit 9"):
            isolated.all_of(poison.numbers, 3, folder=tmp_path)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
        with pytest.raises(UserError, match=r"cannot start: .*No such file"):
            isolated.all_of(poison.numbers, 3, folder=tmp_path)
        monkeypatch.undo()
        assert list(isolated.run(poison.numbers, 2)) == [0, 1]


PARENT = """
import signal, sys, time
from pathlib import Path
from sharding.media.isolation import Isolated
from tests.support.processes import gone
from tests.support.videos import poison
{more}
with Isolated(60) as isolated:
    list(isolated.run(poison.write_pid_and_hang, Path(sys.argv[1])))
"""


def begun(path: Path, more: str = "") -> tuple[subprocess.Popen[bytes], int]:
    """A process with a child that hangs, and the child's pid."""
    program = [sys.executable, "-c", PARENT.format(more=more), str(path)]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process, int(path.read_text())


def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    leave = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
    for name, more, number, code in (
        ("kill", "", signal.SIGKILL, -signal.SIGKILL),
        ("default", "", signal.SIGTERM, -signal.SIGTERM),
        ("handled", leave, signal.SIGTERM, 75),
    ):
        process, pid = begun(tmp_path / name, more)
        process.send_signal(number)
        assert process.wait(20) == code
        assert gone(pid), name


def test_a_terminal_s_interrupt_is_the_parent_s(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ours, theirs = pty.openpty()
    program = PARENT.format(more="signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), sys.exit(3)))")
    process = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + program, str(path)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        pid = int(path.read_text())
        os.write(ours, b"\x03")
        assert not gone(pid, 0.6)
        assert process.wait(20) == 3 and gone(pid)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
