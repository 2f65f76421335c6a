"""Folders that cannot be written to, however they look: every command that takes one ends with 2 and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.conversion.import_export import import_run
from sharding.base.errors import UserError
from sharding.base.user_paths import require_writable, writable_folder, writing
from sharding.storage.store import open_store
from tests.cluster.conftest import SMALL, Say
from tests.support.commands import refused, succeeded
from tests.support.training.published_files import random_state, video_shapes

ALONE = ("launcher=none",)
PLACES = ["/proc/x", "/dev/null/x", "file/x", "n" * 300]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of imported weights."""
    folder = tmp_path_factory.mktemp("imported")
    torch.save(random_state(video_shapes(("3d",) * 4, classes=3, planes=8)), folder / "r3d.pth")
    import_run(folder / "r3d.pth", folder / "run")
    return folder / "run"


@pytest.fixture()
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "file").write_text("of a user")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "far")
    return str(request.param)


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_every_command_that_writes(
    say: Say, place: str, store: Path, corpus: Path, recipe: Path, run: Path, tmp_path: Path
) -> None:
    succeeded(say("export", run, "weights.safetensors"))
    before = left(tmp_path), left(store), left(run)
    training = (recipe, f"data.store={store}", *ALONE)
    for command in (
        ("pretrain", *training, f"run={place}"),
        ("pretrain", *training, f"run={place}", "--dry-run"),
        ("pretrain", recipe, f"data.store={store}", f"run={place}", "launcher=ray"),
        ("finetune", *training, f"run={place}", f"init.run={run}"),
        ("shard", corpus, place, *SMALL, *ALONE),
        ("shards", "inspect", store, "--out", place),
        ("report", run, "--out", place),
        ("import", "weights.safetensors", place),
        ("export", run, f"{place}/weights.safetensors"),
    ):
        said = refused(say(*command))
        assert place in said or Path(place).name in said, said
    assert (left(tmp_path), left(store), left(run)) == before


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_what_is_read_there(say: Say, place: str, store: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluate.yaml").write_text("launcher: none\n")
    for command in (
        ("evaluate", "evaluate.yaml", f"run={place}"),
        ("report", place),
        ("export", place, "weights.safetensors"),
        ("finetune", recipe, f"data.store={store}", *ALONE, f"init.run={place}"),
        ("shards", "verify", place),
        ("shards", "inspect", place),
        ("shards", "retry", place),
        ("bench-loader", place),
        ("pretrain", recipe, f"data.store={place}", *ALONE),
    ):
        refused(say(*command))


@pytest.fixture()
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system that cannot be written to, by whomever."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"nothing can be mounted here: {mount.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_mount(read_only: Path) -> None:
    for folder in (read_only, read_only / "run"):
        with pytest.raises(UserError, match="cannot be written to: Read-only file system"):
            require_writable(folder, "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written to: Permission denied"):
        require_writable(tmp_path / "run", "run")
    tmp_path.chmod(0o700)


def test_what_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    assert writable_folder(str(tmp_path / "a" / "b"), "run") == str(tmp_path / "a" / "b")
    assert left(tmp_path) == set()
    with pytest.raises(UserError, match="null"):
        writable_folder(str(tmp_path / "a\0b"), "run")


def test_a_disk_that_is_full_later(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written to: No space left") as caught, writing(tmp_path, "run"):
        Path("/dev/full").write_text("x")
    assert caught.value.where == "run"


def test_a_store_where_no_folder_can_be_made(tmp_path: Path) -> None:
    for place in ("/proc/x", "/dev/null/x"):
        with pytest.raises(UserError, match="the store cannot be used") as caught:
            open_store(place).put("train/a", b"", create=True)
        assert place in caught.value.where
    with pytest.raises(UserError, match="File name too long"):
        open_store(str(tmp_path / ("n" * 300)))
    shutil.copy(__file__, tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        open_store(str(tmp_path)).get("absent/a")
