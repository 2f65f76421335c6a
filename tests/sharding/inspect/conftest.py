"""An intact store of a few shards, one of them with flow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sharding.storage.store import Store, open_store
from tests.support.damaged_stores import add_flow, chosen, sharded


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, pieces: list[Path], broken: dict[str, Path]) -> Path:
    """A sound store of a few shards, one of them with flow."""
    folder = tmp_path_factory.mktemp("whole")
    for number, piece in enumerate(pieces):
        for copy in range(2):
            target = folder / "corpus" / ("calm" if number < 3 else "lively") / f"{number}-{copy}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(piece, target)
    shutil.copyfile(broken["text"], folder / "corpus" / "calm" / "note.mp4")
    store = open_store(str(folder / "store"))
    sharded(folder / "corpus", store)
    add_flow(store, chosen(store))
    return folder / "store"


@pytest.fixture()
def store(whole: Path, tmp_path: Path) -> Store:
    shutil.copytree(whole, tmp_path / "store")
    return open_store(str(tmp_path / "store"))
