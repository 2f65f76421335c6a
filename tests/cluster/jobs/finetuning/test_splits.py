"""Fine-tuning over splits: their stages, what is refused, how many at a time; whole ones with a kill and a failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.jobs.finetuning.splits import SplitsJob, fitting_jobs, load_splits, splits_result
from cluster.jobs.pipeline.plan import StagePaths
from cluster.jobs.pipeline.processes import StageEnd
from cluster.jobs.pipeline.records import StageRecord, record_of, states
from cluster.launch.launch_settings import LaunchSettings
from sharding.base.errors import UserError
from tests.cluster.conftest import Say
from tests.support.commands import Command, checkpoints, gone, refused, running, succeeded

FILE = """\
finetune: tiny.yaml
evaluate: evaluate.yaml
store: stores/{split}
parallel: 2
"""


def no_paths(command: str, words: Sequence[str]) -> StagePaths:
    return StagePaths()


@pytest.fixture()
def file(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of splits beside its recipes."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(recipe, tmp_path / "tiny.yaml")
    (tmp_path / "evaluate.yaml").write_text("run: runs/mine\nclips: 2\nlauncher: none\n")
    (tmp_path / "splits.yaml").write_text(FILE)
    return Path("splits.yaml")


def test_a_split_is_a_fine_tuning_and_an_evaluation_that_needs_it(file: Path, tmp_path: Path) -> None:
    overrides = ["splits=[1,2]", "finetune.init.run=base-{split}", "evaluate.clips=3", "folder=out"]
    _, plan = load_splits(str(file), overrides, no_paths)
    assert plan.keep_going and plan.parallel == 2 and plan.folder == tmp_path / "out" / "pipeline"
    assert [(stage.name, stage.needs, stage.retries) for stage in plan.stages] == [
        ("finetune-1", (), 2), ("evaluate-1", ("finetune-1",), 2),
        ("finetune-2", (), 2), ("evaluate-2", ("finetune-2",), 2),
    ]  # fmt: skip
    run = tmp_path / "out" / "split-2"
    assert plan.stages[2].words == (
        "finetune", "tiny.yaml", "data.store=stores/2", f"run={run}", "init.run=base-2"
    )  # fmt: skip
    assert plan.stages[3].words == ("evaluate", "evaluate.yaml", f"run={run}", "clips=3")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("store=stores/one", "all splits would be the store"),
        ("splits=[1,1]", "a split is named twice"),
        ("splits=['../x']", "splits"),
        ("retry=1", "did you mean retries"),
    ],
)
def test_what_is_refused(file: Path, override: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        load_splits(str(file), [override], no_paths)
    assert part in str(error.value)


def test_as_many_at_a_time_as_the_cluster_has_room_for() -> None:
    eight = LaunchSettings(ranks=8)
    assert fitting_jobs({"GPU": 32.0, "CPU": 64.0}, eight, 3) == 3
    assert fitting_jobs({"GPU": 16.0, "CPU": 64.0}, eight, 3) == 2
    assert fitting_jobs({"GPU": 4.0, "CPU": 64.0}, eight, 3) == 1
    assert fitting_jobs({"CPU": 64.0}, eight, 3) == 1  # each takes all CPUs
    assert fitting_jobs({"CPU": 64.0}, LaunchSettings(ranks=8, cpus_per_rank=4), 3) == 2


def evaluation(root: Path, split: str, name: str, video1: float, /, **other: object) -> Path:
    """The folder of an evaluation of a split's run, as its stage makes it but for `other`; newer than those before."""
    run = root / "runs" / "splits" / f"split-{split}"
    folder, store = run / "evaluation" / name, str(root / "stores" / split)
    folder.mkdir(parents=True)
    (Path(store) / "index").mkdir(parents=True, exist_ok=True)
    (Path(store) / "index" / "000001-aaaaaaaaaaaaaaaa.parquet").touch()
    data = {"store": store, "mix": [], "index": ["000001-aaaaaaaaaaaaaaaa"]}
    (run / "settings.json").write_text(json.dumps({"settings": {"data": data}, "identity": {"data": data}}))
    protocol = {"clips": 2, "crops": 1, "crop": 16, "trained_crop": 16, "pooling": "convolutional", "average": "scores"}
    summary = {"video1": video1, "video5": 1.0, "clip1": 0.25, "videos": 6, "split": "val", "store": store,
               "index": "000001-aaaaaaaaaaaaaaaa", "protocol": {**protocol, "words": "2 clips"}, **other}  # fmt: skip
    file = folder / "summary.json"
    file.write_text(json.dumps(summary))
    seconds = len(list((run / "evaluation").iterdir()))
    os.utime(file, (seconds, seconds))
    return folder


def test_the_mean_is_of_those_that_are_done(file: Path, tmp_path: Path) -> None:
    job, plan = load_splits(str(file), ["finetune.init.run=base", "published=60"], no_paths)
    for split, video1 in (("1", 0.5), ("3", 0.75)):
        evaluation(tmp_path, split, "x", video1)
    ends = [StageEnd("finetune-1", "skipped"), StageEnd("evaluate-1", "done"), StageEnd("finetune-2", "failed", 1),
            StageEnd("evaluate-2", "not begun"), StageEnd("finetune-3", "done"),
            StageEnd("evaluate-3", "skipped")]  # fmt: skip
    result = splits_result(job, plan, ends)
    assert [split["outcome"] for split in result["splits"]] == ["done", "failed", "done"]
    assert (result["done"], result["of"]) == (2, 3)
    assert result["mean"] == {"video1": 0.625, "video5": 1.0, "clip1": 0.25}
    assert result["spread"]["video1"] == pytest.approx(0.1767767)
    assert result["published"] == {"video1": 0.6}
    assert isinstance(job, SplitsJob)


def test_a_figure_is_of_the_evaluation_that_the_stage_makes(file: Path, tmp_path: Path) -> None:
    """Not of one that somebody made by hand, though it is newer; without the stage's own there is no figure."""
    ends = [StageEnd("finetune-1", "skipped"), StageEnd("evaluate-1", "skipped")]
    job, plan = load_splits(str(file), ["splits=[1]"], no_paths)
    own = evaluation(tmp_path, "1", "own", 0.5)
    protocol = {"clips": 2, "crops": 1, "crop": 16, "trained_crop": 16, "pooling": "convolutional", "average": "scores"}
    for number, other in enumerate(
        (
            {"split": "train"},
            {"store": str(tmp_path / "elsewhere")},
            {"index": "000002-bbbbbbbbbbbbbbbb"},
            {"protocol": {**protocol, "clips": 3}},
            {"protocol": {**protocol, "crop": 24}},
            {"protocol": {**protocol, "average": "logits"}},
            {"protocol": None},
        )
    ):
        evaluation(tmp_path, "1", f"hand-{number}", 0.9, **other)
    (evaluation(tmp_path, "1", "torn", 0.9) / "summary.json").write_text("{")
    (result,) = splits_result(job, plan, ends)["splits"]
    assert (result["folder"], result["figures"]["video1"]) == (str(own), 0.5)
    shutil.rmtree(own)
    (result,) = splits_result(job, plan, ends)["splits"]
    assert (result["outcome"], result["figures"]) == ("no evaluation", None)


def test_an_evaluation_that_is_gone_is_done_again(file: Path, tmp_path: Path) -> None:
    own = evaluation(tmp_path, "1", "own", 0.5)
    evaluation(tmp_path, "1", "by-hand", 0.9, split="train")

    def stage_states() -> list[tuple[str, str]]:
        _, plan = load_splits(str(file), ["splits=[1]"], no_paths)
        records = dict[str, StageRecord]()
        for stage in plan.stages:
            records[stage.name] = record_of(stage, records, 1.0).model_copy(update={"id": stage.name})
        return [(state.state, state.reason) for state in states(plan, records).values()]

    assert stage_states() == [("done", ""), ("done", "")]
    shutil.rmtree(own)
    assert stage_states() == [("done", ""), ("changed", "its evaluation is gone")]


def test_of_two_streams_the_figures_are_the_fused_ones(file: Path, tmp_path: Path) -> None:
    flow = {"run": str(tmp_path / "flow-1"), "of": "logits", "search_split": None}
    evaluation(tmp_path, "1", "x", 0.5, fused={**flow, "weight": 0.5, "video1": 0.75, "video5": 0.875})
    for overrides, figure in (
        (["evaluate.fuse.run=flow-{split}"], (0.75, 0.875, 0.25)),
        ([], (0.5, 1.0, 0.25)),
        (["evaluate.fuse.run=flow-{split}", "evaluate.fuse.weight=0.25"], None),
        (["evaluate.fuse.run=other"], None),
        (["evaluate.fuse={run: flow-1, search_split: train}"], None),
    ):
        job, plan = load_splits(str(file), ["splits=[1]", *overrides], no_paths)
        (result,) = splits_result(job, plan, [StageEnd("evaluate-1", "done")])["splits"]
        assert result["figures"] == (figure and dict(zip(("video1", "video5", "clip1"), figure, strict=True)))


def stores(store: Path, tmp_path: Path, count: int) -> list[Path]:
    """Stores of this many splits."""
    return [Path(shutil.copytree(store, tmp_path / "stores" / str(number + 1))) for number in range(count)]


@pytest.mark.cluster
def test_a_split_that_is_killed_goes_on_and_one_that_fails_costs_no_other(
    file: Path, store: Path, begun: Path, tmp_path: Path
) -> None:
    """The first split's job is killed, the third's videos are damaged; mended, the same command does what is left."""
    whole = {tar: tar.read_bytes() for tar in stores(store, tmp_path, 3)[2].glob("val/*.tar")}
    for tar, data in whole.items():  # all of them: a single damaged video would be counted as wrong
        tar.write_bytes(data[:1000])
    runs = [tmp_path / "runs" / "splits" / f"split-{number}" for number in (1, 2, 3)]
    arguments = ("splits", file, f"finetune.init.run={begun}", "finetune.launcher=none", "finetune.schedule.epochs=8",
                 "finetune.checkpoint.every_steps=1", "--json")  # fmt: skip
    with running(*arguments, folder=tmp_path) as command:
        command.until(lambda: checkpoints(runs[0]))
        os.kill(job_of(command, runs[0]), signal.SIGKILL)
        code = command.exit_code()
        assert code == 2, command.said
        assert "finetune-1: was ended by SIGKILL; try 2 of 3 begins" in command.err, command.said
        assert "going on from the checkpoint at step" in (runs[0] / "train.log").read_text()
        result = json.loads(command.out)
    assert [split["outcome"] for split in result["splits"]] == ["done", "done", "failed"]
    assert result["done"] == 2 and result["splits"][0]["videos"] == 6
    for tar, data in whole.items():
        tar.write_bytes(data)
    with running(*arguments, folder=tmp_path) as command:
        assert command.exit_code() == 0, command.said
        assert command.err.count(": done already") == 5
        result = json.loads(command.out)
    assert result["done"] == 3 and result["spread"] is not None
    assert json.loads((tmp_path / "runs" / "splits" / "splits.json").read_text())["mean"] == result["mean"]


def job_of(command: Command, run: Path) -> int:
    """The process of a run's fine-tuning, above its ranks."""
    own = [pid for pid, words in command.descendants().items() if "finetune" in words and f"run={run}" in words]
    return min(own)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_splits_run_side_by_side_on_ray_and_stop_in_order(
    file: Path, store: Path, begun: Path, ray: dict[str, str], tmp_path: Path
) -> None:
    stores(store, tmp_path, 2)
    (tmp_path / "splits.yaml").write_text(FILE.replace("parallel: 2\n", ""))
    runs = [tmp_path / "runs" / "splits" / f"split-{number}" for number in (1, 2)]
    arguments = ("splits", file, "splits=[1,2]", f"finetune.init.run={begun}", "finetune.ranks=1",
                 "finetune.cpus_per_rank=1", "finetune.schedule.epochs=4000")  # fmt: skip
    with running(*arguments, folder=tmp_path, environment=ray) as command:
        command.until(lambda: all(map(checkpoints, runs)))  # neither can have ended
        left = list(command.descendants())
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.exit_code() == 75, command.said
        assert "Traceback" not in command.said and gone(left)
    assert not (tmp_path / "runs" / "splits" / "pipeline" / "finetune-1.json").exists()


def test_a_dry_run_shows_the_jobs(say: Say, file: Path, store: Path, begun: Path, tmp_path: Path) -> None:
    refused(say("splits", file, "--dry-run"), "finetune-1", "init.run=RUN")
    stores(store, tmp_path, 3)
    shown = succeeded(say("splits", file, f"finetune.init.run={begun}", "--dry-run")).stdout
    assert shown.count("to do") == 6 and "reelscale finetune tiny.yaml data.store=stores/2" in shown
