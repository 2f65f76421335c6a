"""Temporary folders: removed at the end, and after a kill by the next who wants one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sharding.base.errors import UserError
from sharding.base.scratch import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


HOLD = """
import sys
from sharding.base.scratch import scratch
with scratch("shard") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "part.tar").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder() -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder until its input ends, and the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_there_and_gone(temporary: Path) -> None:
    with scratch("shard") as folder, scratch("shard") as other:
        assert folder != other and folder.parent == other.parent == temporary
        assert list(folder.iterdir()) == [] and folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").write_bytes(b"x")
    with pytest.raises(KeyError), scratch("shard"):
        raise KeyError
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed(temporary: Path) -> None:
    killed, left = holder()
    living, kept = holder()
    killed.kill()
    killed.wait()
    (temporary / "reelscale-scratch-not-ours").mkdir()
    assert (left / "deep" / "part.tar").exists()
    with scratch("flow") as folder:
        assert not left.exists() and (kept / "deep" / "part.tar").exists() and folder.exists()
    living.communicate("")
    assert living.returncode == 0
    assert [path.name for path in temporary.iterdir()] == ["reelscale-scratch-not-ours"]


def test_a_killed_sweeper_s_rest_is_removed(temporary: Path) -> None:
    (temporary / "reelscale-scratch-shard-0123.lock").touch()
    with scratch("shard"):
        assert len(list(temporary.iterdir())) == 2
    assert list(temporary.iterdir()) == []


def test_a_link_for_a_lock_leads_nowhere(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"1")
    (temporary / "reelscale-scratch-shard-0123.lock").symlink_to(tmp_path / "precious")
    (temporary / "reelscale-scratch-shard-0123").symlink_to(tmp_path)
    with scratch("shard"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"1"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_another_user_s_folder_stays(temporary: Path) -> None:
    lock, folder = temporary / "reelscale-scratch-shard-0123.lock", temporary / "reelscale-scratch-shard-0123"
    lock.touch()
    folder.mkdir()
    os.chown(lock, 12345, 12345)
    with scratch("shard"):
        assert lock.exists() and folder.exists()


def test_many_at_once_disturb_nobody(temporary: Path) -> None:
    def use(number: int) -> None:
        with scratch("shard") as folder:
            (folder / "mine").write_text(str(number))
            for _ in range(3):
                with scratch("other") as other:
                    assert other.is_dir()
            assert (folder / "mine").read_text() == str(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(200)))
    assert list(temporary.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no temporary folder can be made"), scratch("shard"):
        pass
