"""Small stores of real footage, and the tiny recipe that trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
from numpy.typing import NDArray

from sharding.shard import ShardSettings, finish, make_shard, prepare
from tests.demo.corpora import FOOTAGE, read_footage, write_video

# The machine may be busy: no time limit for an example.
hypothesis.settings.register_profile("unhurried", deadline=None, max_examples=40)
hypothesis.settings.load_profile("unhurried")

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
    for job in prepare(str(corpus), store, SETTINGS).todo:
        make_shard(job, str(corpus), store, SETTINGS)
    finish(store)
    return store


@pytest.fixture(scope="session")
def pictures() -> NDArray[Any]:
    """A man in a car, small: uint8 [frames, 36, 44, 3]."""
    return read_footage(FOOTAGE / "carphone.mp4", 36)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, pictures: NDArray[Any]) -> str:
    """13 videos to train on, 7 to validate, of 6 classes, in shards of 4."""
    return make_store(tmp_path_factory.mktemp("store"), CLASSES, pictures, train=2)


@pytest.fixture(scope="session")
def other_store(tmp_path_factory: pytest.TempPathFactory, pictures: NDArray[Any]) -> str:
    """A store of two classes that are not those of `store`."""
    return make_store(tmp_path_factory.mktemp("other"), ["left", "right"], pictures[100:], train=1)
