"""Corpora, stores and a recipe so small that whole commands take seconds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from cluster import cli
from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.data.sources import open_sources
from pretrain.models.zoo import build_model
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings
from tests.sharding.conftest import FOOTAGE, cut
from tests.support.commands import ray_elsewhere, reelscale, succeeded
from tests.support.s3 import S3Server, running_s3, s3_server
from tests.support.training.checkpoints import commit

Say = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["encode.short_edge=16", "encode.preset=ultrafast"]
RECIPE = """\
lanes: 2
lane_batch: 2
log_steps: 1
data:
  clip: {frames: 4, resize: [16, 16], crop: 16, flip: false}
  loader: {workers: 1}
model: {depth: 10, width: 0.125}
schedule: {lr: 0.01, epoch_clips: 8, epochs: 3, warmup_epochs: 1, decay: cosine}
engine: {precision: fp32, zero: 1}
validation: {every_steps: 3}
checkpoint: {every_steps: 2}
"""


@pytest.fixture()
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """A command line run in this process, in an empty folder: importing torch anew each time costs seconds."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr("sys.argv", ["reelscale", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[dict[str, str], str]]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that names a Ray cluster with another working directory than the commands'."""
    with ray_elsewhere(tmp_path_factory.mktemp("elsewhere")) as environment:
        yield environment


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six pieces of 8 frames of a man in a car."""
    folder = tmp_path_factory.mktemp("pieces")
    return [cut(FOOTAGE / "carphone.mp4", folder / f"piece{n}.mp4", 16 * n, 8) for n in range(6)]


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five files that are no usable video, by name."""
    folder = tmp_path_factory.mktemp("broken")
    names = ("empty.mp4", "note.mp4", "cut.mp4", "still.mp4", "sound.mp4")
    paths = {name: folder / name for name in names}
    paths["empty.mp4"].write_bytes(b"")
    paths["note.mp4"].write_text("This is a note that somebody named .mp4.\n" * 50)
    whole = (FOOTAGE / "carphone.mp4").read_bytes()
    paths["cut.mp4"].write_bytes(whole[: len(whole) // 3])
    cut(FOOTAGE / "carphone.mp4", paths["still.mp4"], 0, 1)
    with av.open(str(paths["sound.mp4"]), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        tone = np.sin(np.arange(1024, dtype=np.float32) / 16)[None]
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return paths


@pytest.fixture(scope="session")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video in train/, 60 in val/: more seconds of work than any test waits."""
    root = tmp_path_factory.mktemp("long") / "corpus"
    for split, count in (("train", 1), ("val", 60)):
        (root / split / "car").mkdir(parents=True)
        for number in range(count):
            (root / split / "car" / f"{number:02d}.mp4").symlink_to(FOOTAGE / "carphone.mp4")
    return root


def class_folders(root: Path, pieces: list[Path], classes: list[str]) -> Path:
    """ROOT/{train,val}/class/video: the pieces dealt out to every class of both splits."""
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for piece in pieces[number % 2 :: 2]:
                shutil.copyfile(piece, root / split / name / piece.name)
    return root


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, pieces: list[Path]) -> Path:
    """Two classes with three videos each, in both splits."""
    return class_folders(tmp_path_factory.mktemp("corpus") / "small", pieces, ["calm", "lively"])


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The corpus as shards, one shard a split."""
    folder = tmp_path_factory.mktemp("store")
    made = reelscale("shard", corpus, folder / "small", *SMALL, "launcher=none", folder=folder)
    succeeded(made)
    return folder / "small"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of a tiny network; the store and the run's folder are for the command line."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def s3_running() -> Iterator[S3Server]:
    """A server of the module's own, which its tests may stop and start."""
    with running_s3() as server:
        yield server


@pytest.fixture(scope="session")
def begun(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of a network that learned nothing."""
    run = tmp_path_factory.mktemp("begun") / "run"
    tree = yaml.safe_load(RECIPE)
    settings = TrainSettings.model_validate(tree | {"data": {**tree["data"], "store": str(store)}})
    sources = open_sources(settings.data)
    Run(run, writes=True).begin(settings, sources.classes, sources.versions, {})
    state = build_model(settings.model, len(sources.classes), 4).state_dict()
    commit(run, Checkpoint(1, state, {}, {}, {"step": 1}))
    return run
