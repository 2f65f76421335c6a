"""`reelscale predict` as a command: what it prints, writes and ends with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.jobs.prediction import picture_files
from pretrain.evaluation.video_files import VideoFile
from sharding.base.errors import UserError
from tests.cluster.conftest import Say
from tests.support.commands import ROOT, reelscale, refused, succeeded

pytestmark = pytest.mark.slow


@pytest.fixture()
def videos(tmp_path: Path, pieces: list[Path], broken: dict[str, Path]) -> Path:
    """Two sound videos, one of them in a folder of its own, and five files that are no usable video."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(pieces[0], folder / "a.mp4")
    shutil.copy(pieces[1], folder / "deep" / "b.mp4")
    for name, path in broken.items():
        shutil.copy(path, folder / name)
    return folder


def test_a_video_is_predicted_and_drawn(say: Say, begun: Path, pieces: list[Path], tmp_path: Path) -> None:
    said = succeeded(say("predict", begun, pieces[0], "--clips", "3", "--picture", "look.png"))
    title, *lines = said.stdout.splitlines()
    assert title == f"{pieces[0]}  (3 clips)"
    shares = {line.split()[0]: float(line.split()[1]) for line in lines[:2]}
    assert set(shares) == {"calm", "lively"} and sum(shares.values()) == pytest.approx(100, abs=0.02)
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    assert lines[2:] == [f"  picture: {tmp_path / 'look.png'}"]
    assert Image.open(tmp_path / "look.png").format == "PNG"


def test_bad_videos_of_a_folder_are_named_and_the_others_predicted(say: Say, begun: Path, videos: Path) -> None:
    said = say("predict", begun, "videos", "--top", "1", "--picture", "look", "--json")
    assert said.returncode == 1, said.stderr
    results = json.loads(said.stdout)
    rows = {row["video"]: row for row in results["videos"]}
    assert results["failed"] == 5 and len(rows) == 7 and results["step"] == 1
    for name in ("a.mp4", "deep/b.mp4"):
        (top,) = rows[f"videos/{name}"]["top"]
        assert top["class"] == ["calm", "lively"][top["number"]] and 0.5 <= top["probability"] <= 1
        assert Image.open(rows[f"videos/{name}"]["picture"]).format == "PNG"
    assert sorted(path.name for path in (videos.parent / "look").iterdir()) == ["a.mp4.png", "deep-b.mp4.png"]
    assert "audio only" in rows["videos/sound.mp4"]["failure"] and "still image" in rows["videos/still.mp4"]["failure"]
    assert said.stderr.count("failed: videos/") == 5 and "7/7" in said.stderr


def test_failures_end_the_table(say: Say, begun: Path, videos: Path) -> None:
    said = say("predict", begun, videos / "empty.mp4", videos / "a.mp4")
    assert said.returncode == 1
    assert said.stdout.splitlines()[-2:] == [
        "failed: 1 of 2 videos",
        f"  {videos / 'empty.mp4'}: the file is empty",
    ]


def test_mistakes_are_told_before_a_video_is_read(say: Say, begun: Path, store: Path, videos: Path) -> None:
    refused(say("predict", begun, "none.mp4"), "no such video")
    refused(say("predict", begun, store), "a store of shards", "reelscale evaluate")
    refused(say("predict", store, videos), "a store, and no network")
    refused(say("predict", begun, videos, "--start", "3", "--end", "2"), "ends at 2 s")
    refused(say("predict", begun, videos, "--clips", "0"), "clips")
    refused(say("predict", begun, videos, "--picture", "one.png"), "one picture is named for 7 videos")
    refused(say("predict", begun, videos, "--store", "none"), "there are no shards here")


def test_pictures_have_names_of_their_own(tmp_path: Path) -> None:
    videos = [VideoFile(uri, root, uri) for root in ("/x", "/y") for uri in ("a.mp4", "a.mov", "\u5f13.mp4", "d/a.mp4")]
    names = [path.name for path in picture_files(videos, str(tmp_path))]
    assert len(set(names)) == len(videos) and names[:2] == ["a.mp4.png", "a.mov.png"] and names[4] == "a.mp4-2.png"
    assert picture_files(videos[:1], str(tmp_path / "one.PNG")) == [tmp_path / "one.PNG"]
    with pytest.raises(UserError, match="/proc cannot be written to"):
        picture_files(videos, "/proc/look")


@pytest.mark.cluster
def test_videos_on_s3_are_predicted_as_on_disk(
    begun: Path, corpus: Path, s3: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    environment, bucket = s3
    put = "import sys; from sharding.storage.store import open_store; from pathlib import Path\n"
    put += "open_store(sys.argv[1]).put(sys.argv[3], Path(sys.argv[2]).read_bytes())"
    piece = next(path for path in sorted((corpus / "val").rglob("*.mp4")))
    for name in ("look/a.mp4", "look/deep/b.mp4"):
        arguments = [sys.executable, "-c", put, f"s3://{bucket}/predict", str(piece), name]
        subprocess.run(arguments, check=True, cwd=ROOT, env=os.environ | environment)

    def tops(*places: object) -> list[list[dict[str, object]]]:
        said = succeeded(reelscale("predict", begun, *places, "--json", folder=tmp_path, environment=environment))
        return [row["top"] for row in json.loads(said.stdout)["videos"]]

    (expected,) = tops(piece)
    url = f"s3://{bucket}/predict/look"
    assert tops(url, f"{url}/a.mp4", f"{url}/deep") == [expected, expected]
