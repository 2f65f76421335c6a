"""Every recipe that trains passes all that is checked before a run starts, and follows the schedule of its paper."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.jobs.evaluation import EvaluationJob
from cluster.jobs.training import TrainingJob, load_job, resolve, run_folder
from pretrain import settings as quantities
from pretrain.conversion.import_export import clip_settings_of
from pretrain.conversion.published import Published, meta_network
from pretrain.lr_schedule import learning_rate
from pretrain.models.zoo import ModelSettings
from pretrain.settings import TrainSettings
from pretrain.training import initial_network, preflight
from sharding.base.settings import load_settings
from sharding.corpora.manifest import CorpusSettings
from sharding.format.index import current_index
from sharding.storage.store import open_store
from tests.configs.test_recipes import CONFIGS, RECIPES, kind_of
from tests.sharding.conftest import FOOTAGE, cut
from tests.support import stores

CLASSES = {"kinetics400": 400, "sports1m": 487, "ig65m": 359, "ucf101": 101, "hmdb51": 51}
TRAINED = [recipe for recipe in RECIPES if kind_of(recipe) in ("pretrain", "finetune") and recipe.parent != CONFIGS]
RUNS = {  # the folder of each recipe's run: the recipe
    Path(run_folder(job.train, str(recipe), job.train.data.store)).name: recipe
    for recipe in TRAINED
    for job in [load_settings(TrainingJob, str(recipe))]
}
IMPORTED = ("imagenet-i3d-rgb", "imagenet-i3d-flow")  # runs that `reelscale import` makes
EXPORTED_AGAIN = "kinetics400-r2plus1d-18-8f-as-32f"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which recipes find their stores: two tiny videos each, and as many classes as the data set has."""
    folder = tmp_path_factory.mktemp("reader")
    media = folder / "media"
    media.mkdir()
    videos = [cut(FOOTAGE / "carphone.mp4", media / f"{number}.mp4", 8 * number, 8) for number in range(4)]
    lines = ["uri,label,split", *(f"{path.name},{n},{'val' if n else 'train'}" for n, path in enumerate(videos))]
    (media / "list.csv").write_text("\n".join(lines) + "\n")
    for name, classes in CLASSES.items():
        names = folder / f"{name}.txt"
        names.write_text("".join(f"class {number}\n" for number in range(classes)))
        for store in (name, f"{name}-256"):
            corpus = CorpusSettings(labels=str(names))
            stores.shard(media / "list.csv", open_store(str(folder / "stores" / store)), reading=corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def started_from(run: Path) -> tuple[TrainSettings, list[str]]:
    """The settings and classes of a run that a recipe starts from, as its own recipe would leave them there."""
    if run.name in IMPORTED:
        model = ModelSettings(name="i3d", in_channels=2 if "flow" in run.name else 3)
        clip = clip_settings_of(Published(model, 1000, {}, flat=True))
        data = {"store": "", "clip": clip.model_dump()}
        return TrainSettings.model_validate({"data": data, "model": model.model_dump()}), [str(n) for n in range(1000)]
    train = load_settings(TrainingJob, str(RUNS[run.name])).train
    return train, list(current_index(open_store(train.data.store)).classes)


class FinishedRun:
    """In the place of a run's checkpoints: the tensors that its network has, without memory behind them."""

    def __init__(self, folder: Path) -> None:
        train, classes = started_from(folder)
        clip = train.data.clip
        self.weights = meta_network(train.model, len(classes), clip.frames, clip.crop).state_dict()

    def load_weights_only(self, choice: str = "newest") -> Any:
        """Step 1's."""
        return SimpleNamespace(weights=self.weights, step=1)


@pytest.fixture(scope="module")
def without_memory() -> Iterator[None]:
    """Networks have no memory behind them, and those of several recipes are built and counted once."""

    @functools.cache
    def build(model: ModelSettings, classes: int, frames: int, size: int) -> Any:
        return meta_network(model, classes, frames, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantities, "build_model", build)
        patch.setattr(preflight, "build_model", build)
        for name in ("fewest_values", "macs", "activation_bytes"):
            patch.setattr(quantities, name, functools.cache(getattr(quantities, name)))
        patch.setattr(initial_network, "read_settings", started_from)
        patch.setattr(initial_network, "Checkpointer", FinishedRun)
        yield


def policy(recipe: Path) -> tuple[int, float, int, float, tuple[float, ...]]:
    """What the papers say of a training: batch, peak rate, steps, weight decay, epochs after which the rate drops."""
    data, tuned = recipe.stem.partition("-")[0], kind_of(recipe) == "finetune"
    if recipe.parent.name == "i3d":
        return (64, 0.1, 110_000, 1e-7, (37, 74)) if data == "kinetics400" else (64, 0.1, 5_000, 1e-7, (1.7, 3.4))
    if data == "ucf101":
        return 8 * 4, 8 * 0.0001, 8 * 100_000 // 32, 5e-3, (2, 4, 6)
    if data == "hmdb51":
        return 8 * 4, 8 * 0.0002, 8 * 40_000 // 32, 5e-3, (2, 4, 6)
    if tuned:
        return 8 * 32, 8 * 0.001, math.ceil(15_000_000 / 256), 1e-4, (4, 8, 12)
    return 8 * 32, 8 * 0.01, math.ceil(45_000_000 / 256), 1e-4, (20, 30, 40)


GMACS = {  # of a clip: counted layer by layer
    ("r3d", 18, 8): 20.35,
    ("r2plus1d", 18, 8): 20.75,
    ("r2plus1d", 18, 16): 41.50,
    ("r2plus1d", 34, 8): 38.09,
    ("r2plus1d", 34, 32): 152.36,
    ("r2plus1d", 152, 32): 252.00,
    ("i3d", None, 64): 111.15,
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TRAINED, ids=lambda path: path.stem)
def test_a_recipe_dry_runs(reader: Path, without_memory: None, recipe: Path) -> None:
    job = load_job(str(recipe), [], needs_init=kind_of(recipe) == "finetune")
    resolved = resolve(job, str(recipe))
    derived, train = resolved.derived, job.train
    batch, rate, steps, decay, drops = policy(recipe)
    assert (derived["global_batch"], derived["steps"]) == (batch, steps)
    assert derived["peak_learning_rate"] == pytest.approx(rate)
    assert derived["classes"] == CLASSES[recipe.stem.partition("-")[0]]
    assert (train.engine.optimizer, train.engine.momentum, train.engine.weight_decay) == ("sgd", 0.9, decay)
    for number, epoch in enumerate(drops):
        sample = epoch * train.schedule.epoch_clips
        rates = [learning_rate(train.schedule, train.lanes, int(sample) + moved) for moved in (-1, 0)]
        assert rates == pytest.approx([rate / 10**number, rate / 10 ** (number + 1)])
    gmacs = GMACS.get((train.model.name, train.model.depth, train.data.clip.frames))
    if gmacs and train.data.clip.input == "rgb" and derived["classes"] == 400:
        assert derived["gmacs_per_clip"] == pytest.approx(gmacs, abs=0.006)
    assert not (reader / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("override", ["data.clip.frames=16", "lanes=64", "data.store=stores/kinetics400-256"])
def test_a_row_that_has_no_recipe_is_an_override_away(reader: Path, without_memory: None, override: str) -> None:
    recipe = str(CONFIGS / "r2plus1d/table5/kinetics400-r2plus1d-34-32f-from-sports1m-finetune.yaml")
    assert resolve(load_job(recipe, [override, "ranks=8"], needs_init=True), recipe).derived["parameters"] == 63_697_175


def test_an_evaluation_scores_the_runs_of_recipes() -> None:
    clips = {}
    for recipe in (path for path in RECIPES if kind_of(path) == "evaluate" and path.parent != CONFIGS):
        evaluation = load_settings(EvaluationJob, str(recipe)).evaluation
        runs = [evaluation.run, *([evaluation.fuse.run] if evaluation.fuse else [])]
        assert {Path(run).name for run in runs} <= {*RUNS, EXPORTED_AGAIN}
        assert len({*runs}) == 1 + ("two-stream" in recipe.stem)
        clips[recipe.stem] = evaluation.clips
    of_sports = {name: count for name, count in clips.items() if name.startswith("sports1m")}
    assert {*of_sports.values()} == {100} and len(of_sports) == 3
    assert {count for name, count in clips.items() if name not in of_sports} == {10}
