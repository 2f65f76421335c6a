"""Ray's sockets, whose paths the system limits: a short folder is taken where TMPDIR is long."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.launch.on_ray import folder as session
from sharding.base.errors import UserError
from tests.cluster.conftest import SMALL
from tests.support.commands import reelscale, succeeded


def test_the_folders_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "ray").touch()
    long = "x" * (session.ROOM + 1)
    (tmp_path / long).mkdir()
    (tmp_path / long[:-1]).mkdir()
    assert session.fitting([long, "file", "taken", "absent", "short"]) == "short"
    assert session.fitting([long, long[:-1]]) == long[:-1]
    assert session.fitting([long, "absent"]) is None


def test_where_no_folder_fits_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SHORT", ("/proc/none",))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "long" * 20)
    with pytest.raises(UserError, match=f"at most {session.ROOM} bytes") as caught:
        session.session_folder()
    assert "RAY_TMPDIR" in caught.value.remedy and "long" in caught.value.where


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["long", "absent"])
def test_commands_under_ray_where_tmpdir_is_of_no_use_to_it(
    name: str, corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "absent" if name == "absent" else tmp_path / ("long" * 20)
    if name == "long":
        folder.mkdir()
    environment = {"TMPDIR": str(folder)}
    made = succeeded(
        reelscale("shard", corpus, "store", *SMALL, "launcher=ray", folder=tmp_path, environment=environment)
    )
    assert "Ray keeps its session in /tmp/ray" in made.stderr and "Traceback" not in made.stderr
    if name == "long":
        training = ("pretrain", recipe, "data.store=store", "run=run", "launcher=ray", "schedule.epochs=1")
        trained = succeeded(reelscale(*training, folder=tmp_path, environment=environment))
        assert "Traceback" not in trained.stderr and (tmp_path / "run" / "checkpoints").is_dir()
