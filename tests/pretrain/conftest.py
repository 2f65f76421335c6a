"""Small stores of real footage, and the tiny recipe that trains on them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from numpy.typing import NDArray

from pretrain.engine.distributed import free_port
from sharding.corpora.manifest import CorpusSettings
from sharding.make.shard import ShardSettings
from sharding.storage.store import open_store
from tests.demo.corpora import FOOTAGE, read_footage, write_video
from tests.support.made_once import made_once
from tests.support.stores import shard

# Triton's kernels run on the CPU where there is no GPU, in all processes of the tests: it must be said before Triton is
# imported for the first time, by whomever.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The machine may be busy: no time limit for an example.
hypothesis.settings.register_profile("unhurried", deadline=None, max_examples=40)
hypothesis.settings.load_profile("unhurried")

ROOT = Path(__file__).parents[2]
CLASSES = [f"class{number}" for number in range(6)]
SHORT = 3  # frames of the videos that are shorter than a clip
CLIP = {"frames": 4, "stride": 1, "resize": [18, 22], "crop": 16}
SETTINGS = ShardSettings.model_validate({"videos_per_shard": 4, "encode": {"short_edge": 36, "preset": "ultrafast"}})


def make_store(root: Path, classes: list[str], pictures: NDArray[Any], train: int) -> str:
    """`train` videos a class and one of validation, of 14 to 38 frames, and a last one shorter than a clip."""
    corpus, position = root / "corpus", 0
    for split, count in (("train", train), ("val", 1)):
        for name in classes:
            folder = corpus / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                length = 14 + 12 * (position % 3)
                first = 11 * position % (len(pictures) - length)
                write_video(folder / f"{number}.mp4", pictures[first : first + length])
                position += 1
        write_video(folder / "short.mp4", pictures[:SHORT])
    store = str(root / "store")
    shard(corpus, open_store(store), SETTINGS, CorpusSettings())
    return store


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What runs keep for others lies here, not in the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REELSCALE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What came out of the engine's cases, by world size."""
    from tests.support.training.engine_cases import read_results, run_cases  # loads torch, which others do without

    return read_results(made_once(tmp_path_factory, "engine", run_cases))


@pytest.fixture()
def run_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the run's log is told."""
    logger = logging.getLogger("reelscale")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def pictures() -> NDArray[Any]:
    """A man in a car, small: uint8 [frames, 36, 44, 3]."""
    return read_footage(FOOTAGE / "carphone.mp4", 36)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, pictures: NDArray[Any]) -> str:
    """13 videos to train on, 7 to validate, of 6 classes, in shards of 4."""
    root = made_once(tmp_path_factory, "store", lambda folder: make_store(folder, CLASSES, pictures, train=2))
    return str(root / "store")


@pytest.fixture(scope="session")
def other_store(tmp_path_factory: pytest.TempPathFactory, pictures: NDArray[Any]) -> str:
    """A store of two classes that are not those of `store`."""
    classes = ["left", "right"]
    root = made_once(tmp_path_factory, "other", lambda folder: make_store(folder, classes, pictures[100:], train=1))
    return str(root / "store")


def write_recipe(folder: Path, store: str, **changes: Any) -> Path:
    """The recipe of a run of a few seconds; `changes` replace its top-level settings."""
    settings = {
        "launcher": "none",
        "monitor": {"port": 0},
        "lanes": 2,
        "lane_batch": 2,
        "log_steps": 1,
        "data": {"store": store, "clip": CLIP, "loader": {"workers": 1}},
        "model": {"depth": 10, "width": 0.125, "dropout": 0.3},
        "schedule": {"lr": 0.005, "epoch_clips": 40, "epochs": 3, "warmup_epochs": 1, "decay": "cosine"},
        "engine": {"precision": "fp32", "zero": 1, "compute_path": "channels-last"},  # or runs may differ in rounding
        "validation": {"every_steps": 10, "videos": 5},
        "checkpoint": {"every_steps": 4, "keep": 2},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def start(
    recipe: Path,
    run: Path,
    log: Path,
    *overrides: str,
    command: str = "pretrain",
    alone: bool = False,
    gpu: bool = False,
) -> subprocess.Popen[bytes]:
    """`reelscale COMMAND RECIPE run=RUN …` in a session of its own, its output appended to `log`.

    `alone`: the process is the one rank, as torchrun would start it; it has no launcher above it. `gpu`: it may see
    the machine's GPUs.
    """
    arguments = [sys.executable, "-m", "cluster.cli", command, str(recipe), f"run={run}", *overrides]
    outside = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"})
    if alone:
        environment |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with log.open("a") as output:
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; what is left of it after four minutes is ended (its ranks die with it)."""
    try:
        return process.wait(240)
    finally:
        process.kill()


@dataclass(frozen=True)
class Finished:
    """A run that went through undisturbed: its recipe, folder and output."""

    recipe: Path
    folder: Path
    log: Path


@pytest.fixture(scope="session")
def finished(store: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """30 steps of 4 clips on one rank."""

    def train(root: Path) -> None:
        log = root / "log"
        assert end(start(write_recipe(root, store), root / "run", log, alone=True)) == 0, log.read_text()

    root = made_once(tmp_path_factory, "finished", train)
    return Finished(root / "recipe.yaml", root / "run", root / "log")
