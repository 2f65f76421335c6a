"""Files and folders that appear whole, by whomever they are written at the same time."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sharding.base.atomic import (
    append_line,
    atomic_folder,
    atomic_write,
    atomic_write_bytes,
    atomic_write_text,
    remove_folder,
    replace_folder,
    sha256_of,
    sync,
    temporary_beside,
)


def test_writers_of_one_process_id_do_not_meet(tmp_path: Path) -> None:
    """The threads of a process have one id, as processes of two containers may."""
    path, together = tmp_path / "settings.json", threading.Barrier(8)

    def write(letter: str) -> None:
        for _ in range(20):
            together.wait()
            with atomic_write(path) as temporary, temporary.open("w") as file:
                for _ in range(100):
                    file.write(letter * 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh"))
    text = path.read_text()
    assert len(text) == 10_000 and len(set(text)) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["settings.json"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_name_of_any_length_has_a_place_beside_it(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    with atomic_write(path) as temporary:
        temporary.touch()
    assert path.exists()
    first, second = temporary_beside(path), temporary_beside(path)
    assert first != second and first.parent == second.parent == tmp_path


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "record"
    atomic_write_bytes(path, b"first", create=True)
    with pytest.raises(FileExistsError):
        atomic_write_bytes(path, b"second", create=True)
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
    atomic_write_text(path, "é")
    assert path.read_bytes() == "é".encode()


def test_the_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bool]] = []
    path = tmp_path / "record"
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), path.exists()))
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)
    with atomic_write(path) as temporary:
        temporary.touch()
    assert synced == [(temporary, False), (tmp_path, True)]
    with atomic_write(path, durable=False) as temporary:
        temporary.touch()
    assert len(synced) == 2


def test_a_disk_need_not_sync_folders_but_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.fsync", fsync)
    sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "run") as folder:
        folder.mkdir()
        (folder / "half").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "run") as folder:
        folder.mkdir()
        (folder / "file").touch()
    assert list(tmp_path.rglob("*")) == [tmp_path / "run", tmp_path / "run" / "file"]


def test_a_folder_is_replaced_and_removed_in_one_step(tmp_path: Path) -> None:
    step, former = tmp_path / "step-1", tmp_path / ".replaced-step-1"
    for content in ("old", "new"):
        written = temporary_beside(step)
        written.mkdir()
        (written / content).touch()
        former.mkdir()  # a killed process left it
        replace_folder(written, step, former)
        assert list(tmp_path.rglob("*")) == [step, step / content]
    remove_folder(step, tmp_path / ".removed-step-1")
    assert list(tmp_path.iterdir()) == []
    remove_folder(step, tmp_path / ".removed-step-1")  # another process did it


def test_a_line_goes_after_one_that_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "metrics.jsonl", []
    monkeypatch.setattr("os.fsync", synced.append)
    append_line(path, "first")
    append_line(path, "é", durable=True)
    assert path.read_bytes() == "first\né\n".encode() and len(synced) == 1
    path.write_bytes(b"first\nsec")
    append_line(path, "third")
    append_line(path, "fourth")
    assert path.read_bytes() == b"first\nsec\nthird\nfourth\n"
    with pytest.raises(FileNotFoundError):
        append_line(tmp_path / "absent" / "metrics.jsonl", "line")


def test_the_sum_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "part.tar"
    file.write_bytes(bytes(3 * 2**20))
    assert sha256_of(file) == hashlib.sha256(bytes(3 * 2**20)).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "absent")
