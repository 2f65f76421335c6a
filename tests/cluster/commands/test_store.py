"""A store over time, by the commands a user types: lists, segments, new videos, retries, verify, inspect, metrics."""

from __future__ import annotations

import csv
import json
import shutil
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.conftest import SMALL, Say
from tests.support.commands import reelscale, refused, running, shards, succeeded

RUN = [*SMALL, "launcher=none", "workers=1"]
LISTED = [*RUN, "labels_separator=;"]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture()
def listed(tmp_path: Path, pieces: list[Path], broken: dict[str, Path]) -> tuple[Path, Path]:
    """A csv of nine videos: six good, two broken, one that is not there; one has two labels."""
    media = tmp_path / "media"
    media.mkdir()
    for path in [*pieces, broken["note.mp4"], broken["cut.mp4"]]:
        shutil.copyfile(path, media / path.name)
    names = [path.name for path in sorted(media.iterdir())]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "labels", "split"])
        for number, name in enumerate(names):
            writer.writerow([name, "calm;slow" if number == 0 else "lively", "train" if number % 3 else "val"])
        writer.writerow(["nowhere.mp4", "calm", "train"])
    return tmp_path / "list.csv", media


@pytest.mark.cluster
def test_the_life_of_a_store(listed: tuple[Path, Path], pieces: list[Path], tmp_path: Path, say: Say) -> None:
    corpus, media = listed
    store = tmp_path / "store"
    first = succeeded(reelscale("shard", corpus, store, *LISTED, "--media", media, "--json", folder=tmp_path))
    summary = json.loads(first.stdout)
    assert summary["samples"] == 6 and summary["classes"] == ["calm", "lively", "slow"]
    assert summary["left_out"] == {"missing": 1} and sum(summary["failures"].values()) == 2
    assert "nowhere.mp4" in first.stderr and "reelscale shards retry" in first.stderr
    (left_out,) = (store / "plan").glob("*.left-out.jsonl")
    assert json.loads(left_out.read_text())["kind"] == "missing"

    shutil.copyfile(pieces[0], media / "note.mp4")
    shutil.copyfile(pieces[0], media / "nowhere.mp4")
    retried = succeeded(reelscale("shards", "retry", store, "launcher=none", "workers=1", "--json", folder=tmp_path))
    summary = json.loads(retried.stdout)
    assert summary["samples"] == 7 and list(summary["failures"].values()) == [1]
    assert [plan["kind"] for plan in summary["generations"]] == ["corpus", "retry"]

    again = succeeded(reelscale("shard", corpus, store, *LISTED, "--media", media, "--json", folder=tmp_path))
    assert json.loads(again.stdout)["samples"] == 8 and "1 new videos: generation 2" in again.stderr

    refused(
        reelscale("shard", corpus, store, LISTED[-1], "encode.short_edge=32", "--media", media, folder=tmp_path),
        "encode.short_edge: there 16, here 32",
    )
    verified = succeeded(say("shards", "verify", store))
    records = len(shards(store))
    assert "damaged                0" in verified.stdout
    assert f"verify: {records}/{records}  8 samples" in verified.stderr
    out = tmp_path / "look"
    shown = succeeded(say("shards", "inspect", store, "--out", out))
    assert "8" in shown.stdout and (out / "contact-sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert "lively" in (out / "inspect.html").read_text()

    part = next((store / "train").glob("*.tar"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.chmod(0o644)
    part.write_bytes(bytes(data))
    damaged = say("shards", "verify", store, "--json")
    assert damaged.returncode == 1
    assert json.loads(damaged.stdout)["damages"][0]["job"] == part.name[:9]
    assert f"  train/{part.name}" in say("shards", "verify", store).stdout


@pytest.mark.cluster
def test_segments_by_the_command_line(tmp_path: Path, say: Say) -> None:
    folder = tmp_path / "corpus" / "street"
    folder.mkdir(parents=True)
    shutil.copyfile(Path(__file__).parents[2] / "data" / "footage" / "bikes.mp4", folder / "bikes.mp4")
    segments = ("segments.seconds=2", "segments.per_video=3")
    found = succeeded(reelscale("shard", folder.parent, tmp_path / "store", *RUN, *segments, folder=tmp_path))
    assert "3 samples of 1 videos" in found.stdout and "  2 to 5 s  " in found.stdout
    mistaken = say("shard", folder.parent, tmp_path / "other", "segments.seconds=-1")
    assert mistaken.returncode == 2 and "segments.seconds" in mistaken.stderr


def test_mistakes(tmp_path: Path, say: Say) -> None:
    for arguments, part in (
        (("shards", "verify", tmp_path), "no shards here"),
        (("shards", "retry", tmp_path), "no shards here"),
        (("shards", "inspect", tmp_path), "no shards here"),
        (("shards", "verify", tmp_path, "--decode", "some"), "--decode some"),
        (("shard", tmp_path / "none.csv", tmp_path / "store"), "no such corpus"),
        (("shard", tmp_path, tmp_path / "store", "kind=sport"), "kind"),
    ):
        refused(say(*arguments), part)


@pytest.mark.cluster
def test_what_is_served_while_it_runs(long_corpus: Path, tmp_path: Path) -> None:
    each = ("videos_per_shard=1", "workers=2", "launcher=none")
    with running("shard", long_corpus, tmp_path / "store", *each, folder=tmp_path) as command:
        command.until(lambda: "shard: " in command.err)
        (url,) = [line.removeprefix("metrics at ") for line in command.err.splitlines() if line.startswith("metrics")]
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        command.ctrl_c()
        assert command.exit_code() == 75
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {sample.name: sample.value for sample in samples}
    videos = {s.labels["outcome"]: s.value for s in samples if s.name == "reelscale_shard_videos_total"}
    assert videos["good"] >= 1 and videos["failed"] == 0 and values["reelscale_shard_frames_total"] >= 120
    assert values["reelscale_shard_remaining_videos"] <= 60 and values["reelscale_shard_planned_jobs"] == 61
    assert values["reelscale_shard_read_bytes_total"] > 0 and "videos/s" in command.err
    assert values["reelscale_host_memory_available_bytes"] > 0
    assert [s.labels["kind"] for s in samples if s.name == "reelscale_run_info"] == ["shard"]
