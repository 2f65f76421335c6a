"""`reelscale shard`, as a user runs it on folders with good and bad videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cluster.conftest import SMALL
from tests.support.commands import reelscale, refused, succeeded
from tests.support.s3 import free_port

pytestmark = pytest.mark.cluster

NONE = [*SMALL, "launcher=none", "workers=1"]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Path → modification time and bytes of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, pieces: list[Path], broken: dict[str, Path]) -> Path:
    """Two classes of three good videos, and five that cannot be used."""
    root = tmp_path_factory.mktemp("mixed") / "corpus"
    for number, path in enumerate([*pieces, *broken.values()]):
        folder = root / ("calm" if number % 2 else "lively")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    return root


def check_mixed(summary: dict, broken: dict[str, Path]) -> None:
    assert summary["samples"] == summary["videos"] == 6
    assert summary["classes"] == ["calm", "lively"]
    assert set(summary["splits"]) == {"train", "val"}
    assert sum(split["samples"] for split in summary["splits"].values()) == 6
    assert all(split["samples"] and split["shards"] and split["bytes"] for split in summary["splits"].values())
    assert sorted(Path(failure["uri"]).name for failure in summary["failure_examples"]) == sorted(broken)
    assert all(failure["reason"] for failure in summary["failure_examples"])
    assert (
        len({failure["reason"] for failure in summary["failure_examples"]}) >= 4
        and sum(summary["failures"].values()) == 5
    )


def test_bad_videos_are_listed_and_a_second_run_changes_nothing(
    mixed: Path, broken: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = succeeded(reelscale("shard", mixed, store, *NONE, "validation=0.4", folder=tmp_path))
    assert "failures               5: " in first.stdout and "samples                6" in first.stdout
    assert "shard: 11/11" in first.stderr
    assert [name for name in broken if name not in first.stdout] == []
    made = contents(store)

    inspected = succeeded(reelscale("shards", "inspect", store, "--json", folder=tmp_path))
    check_mixed(json.loads(inspected.stdout), broken)

    again = succeeded(reelscale("shard", mixed, store, *NONE, "validation=0.4", "--json", folder=tmp_path))
    assert json.loads(again.stdout) == json.loads(inspected.stdout)
    assert "are there already" in again.stderr
    assert "5 failed; to try them again: reelscale shards retry" in again.stderr
    assert contents(store) == made


def test_processes_and_ray_make_the_same_store(mixed: Path, broken: dict[str, Path], tmp_path: Path) -> None:
    stores = {}
    for launcher in ("none", "ray"):
        made = succeeded(
            reelscale(
                "shard", mixed, tmp_path / launcher, *SMALL, "validation=0.4", "videos_per_shard=3", "workers=2",
                f"launcher={launcher}", "--json", folder=tmp_path,
            )
        )  # fmt: skip
        check_mixed(json.loads(made.stdout), broken)
        stores[launcher] = {path: data for path, (_, data) in contents(tmp_path / launcher).items()}
    assert len([path for path in stores["ray"] if path.endswith(".tar")]) >= 2
    assert stores["ray"] == stores["none"]


def test_a_flat_folder_is_one_class(pieces: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for piece in pieces[:2]:
        shutil.copyfile(piece, folder / piece.name)
    made = succeeded(reelscale("shard", folder, tmp_path / "store", *NONE, "--json", folder=tmp_path))
    found = json.loads(made.stdout)
    assert found["classes"] == ["holiday"] and found["samples"] == 2 and found["failures"] == {}


def test_a_folder_with_no_good_video_is_refused(broken: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "calm"
    folder.mkdir(parents=True)
    for path in broken.values():
        shutil.copyfile(path, folder / path.name)
    result = reelscale("shard", folder.parent, tmp_path / "store", *NONE, folder=tmp_path)
    refused(result, "no good video", *(f"calm/{name}: " for name in broken))


def test_a_folder_without_videos_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear all")
    result = reelscale("shard", tmp_path / "letters", tmp_path / "store", *NONE, folder=tmp_path)
    refused(result, "no video", str(tmp_path / "letters"))
    result = reelscale("shard", tmp_path / "nowhere", tmp_path / "store", *NONE, folder=tmp_path)
    refused(result, "no such corpus", str(tmp_path / "nowhere"))
    assert not (tmp_path / "store").exists()


def test_an_unreachable_store_is_refused(mixed: Path, tmp_path: Path) -> None:
    closed = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    result = reelscale("shard", mixed, "s3://bucket/store", *NONE, folder=tmp_path, environment=closed)
    refused(result, "does not answer", "s3://bucket/store", "AWS_ENDPOINT_URL")
