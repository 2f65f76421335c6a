"""Files that appear whole, by whomever they are written at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sharding.base.atomic import atomic_write, temporary_beside


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
    assert (
        path.exists() and temporary_beside(path) != temporary_beside(path) and temporary_beside(path).parent == tmp_path
    )
