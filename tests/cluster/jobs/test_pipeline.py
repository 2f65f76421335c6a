"""A pipeline's file: what its texts come to, what is refused before anything runs, and what must run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.jobs.pipeline.plan import Plan, StagePaths, load_pipeline, require_stages
from cluster.jobs.pipeline.records import (
    StageRecord,
    read_records,
    record_file,
    record_of,
    sole_use,
    states,
    write_record,
)
from sharding.base.errors import UserError

TEXT = """\
variables: {root: work, store: "${root}/store", epochs: 3}
folder: ${root}/pipeline
stages:
  - {name: shard, command: shard, arguments: [corpus, "${store}"], config: shard.yaml}
  - {name: one, command: finetune, config: tiny.yaml, overrides: ["schedule.epochs=${epochs}"], retries: 2}
  - {name: two, command: finetune, config: tiny.yaml, needs: [shard]}
  - {name: report, command: report, arguments: [a, b], needs: [one, two]}
"""


def no_paths(command: str, words: Sequence[str]) -> StagePaths:
    return StagePaths()


@pytest.fixture()
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text("lanes: 2\n")
    (tmp_path / "configs" / "shard.yaml").write_text("fold: 2\n")
    (tmp_path / "configs" / "all.yaml").write_text(TEXT)
    return Path("configs/all.yaml")


def plan_of(file: Path, *overrides: str) -> Plan:
    return load_pipeline(str(file), overrides, no_paths)


def finished(plan: Plan) -> dict[str, StageRecord]:
    records: dict[str, StageRecord] = {}
    for stage in plan.stages:
        records[stage.name] = record_of(stage, records, 1.0)
    return records


def to_run(plan: Plan, records: dict[str, StageRecord]) -> list[str]:
    return [name for name, state in states(plan, records).items() if state.state != "done"]


def test_variables_are_put_in_and_configs_lie_beside_the_pipeline(file: Path, tmp_path: Path) -> None:
    plan = plan_of(file)
    assert [stage.words for stage in plan.stages] == [
        ("shard", "corpus", "work/store", "--config", "configs/shard.yaml"),
        ("finetune", "configs/tiny.yaml", "schedule.epochs=3"),
        ("finetune", "configs/tiny.yaml"),
        ("report", "a", "b"),
    ]
    assert [stage.needs for stage in plan.stages] == [(), ("shard",), ("shard",), ("one", "two")]
    assert plan.stages[1].settings == {"lanes": 2, "schedule": {"epochs": 3}}
    assert (plan.folder, plan.parallel, plan.stages[1].retries) == (tmp_path / "work" / "pipeline", 1, 2)


def test_the_command_line_wins(file: Path, tmp_path: Path) -> None:
    plan = plan_of(file, "root=/else", "parallel=2", "two.lanes=4", "two.schedule.lr=1", "store=s3://b/x=y")
    assert plan.stages[0].words[:3] == ("shard", "corpus", "s3://b/x=y")
    assert plan.stages[2].words == ("finetune", "configs/tiny.yaml", "lanes=4", "schedule.lr=1")
    assert (plan.folder, plan.parallel) == (Path("/else/pipeline"), 2)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("name: two", "name: one", ["two stages are called one"]),
        ("needs: [shard]", "needs: [shrad]", ["needs shrad", "shard is one"]),
        ("needs: [shard]", "needs: [report]", ["wait for one another", "two, report"]),
        ("${epochs}", "${epoch}", ["${epoch} is no variable", "epochs is one"]),
        ("command: report", "command: rapport", ["stages.3.command", "'report'"]),
        ("retries: 2", "retry: 2", ["stages.1.retry", "retries"]),
        ("name: two", "name: two.three", ["stages.2.name"]),
        ("config: shard.yaml", "config: shards.yaml", ["no such settings file", "configs/shards.yaml"]),
        ("arguments: [a, b]", "arguments: [a, b], overrides: [x=1]", ["report takes no settings"]),
        ("{root: work", "{parallel: 1, root: work", ["a variable is called as a setting is: parallel"]),
        ("root: work", "root: 's3://me:secret@host'", ["holds a password"]),
    ],
)
def test_what_is_refused(file: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        plan_of(file)
    assert [part for part in parts if part not in str(error.value)] == []
    assert str(file) in str(error.value) or "shards.yaml" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["stroe=x", "shrad.fold=1", "stages=[]", "variables.root=x", "root", "parallel.x=1"]
)
def test_what_sets_nothing_is_refused(file: Path, override: str) -> None:
    with pytest.raises(UserError, match="sets nothing of this pipeline"):
        plan_of(file, override)


def test_a_stage_that_is_not_one_cannot_run_again(file: Path) -> None:
    plan = plan_of(file)
    require_stages(plan, ["one"])
    with pytest.raises(UserError, match="no stage is called ones; one is one"):
        require_stages(plan, ["ones"])


def test_what_is_done_is_known_by_its_record(file: Path) -> None:
    plan = plan_of(file)
    assert to_run(plan, {}) == ["shard", "one", "two", "report"]
    records = finished(plan)
    assert to_run(plan, records) == []
    del records["two"]
    assert states(plan, records)["two"].state == "to do"
    assert states(plan, records)["report"].reason == "two must run before"
    assert to_run(plan, records) == ["two", "report"]


def test_changed_settings_run_again_with_all_that_needs_them(file: Path) -> None:
    records = finished(plan_of(file))
    changed = plan_of(file, "epochs=5")
    assert to_run(changed, records) == ["one", "report"]
    assert states(changed, records)["one"].reason == "schedule.epochs: 3 → 5"
    Path("configs/tiny.yaml").write_text("# a remark changes nothing\nlanes: 2\n")
    assert to_run(plan_of(file), records) == []
    Path("configs/tiny.yaml").write_text("lanes: 4\n")
    assert to_run(plan_of(file), records) == ["one", "two", "report"]
    assert to_run(plan_of(file, "store=other"), records) == ["shard", "one", "two", "report"]
    assert (
        "its command was: reelscale shard corpus work/store"
        in states(plan_of(file, "store=o"), records)["shard"].reason
    )


def test_what_ran_again_has_what_needs_it_run_again(file: Path) -> None:
    plan = plan_of(file)
    records = finished(plan)
    records["one"] = record_of(plan.stages[1], records, 1.0)
    assert to_run(plan, records) == ["report"]
    assert [name for name, state in states(plan, finished(plan), ["two"]).items() if state.state != "done"] == [
        "two",
        "report",
    ]


def test_what_was_made_and_is_gone_is_made_again(file: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    plan = load_pipeline(str(file), [], lambda command, words: StagePaths(["made"] if command == "shard" else []))
    records = finished(plan)
    assert to_run(plan, records) == []
    made.rmdir()
    assert states(plan, records)["shard"].reason == f"{made} is gone"
    assert to_run(plan, records) == ["shard", "one", "two", "report"]


@pytest.mark.parametrize(
    ("read", "refused"),
    [("work/store", False), ("work/store/train", False), ("s3://b/x", False), ("configs", False), ("work/stroe", True)],
)
def test_what_no_stage_before_makes_must_be_there(file: Path, read: str, refused: bool) -> None:
    def paths(command: str, words: Sequence[str]) -> StagePaths:
        return StagePaths(made=["work/store"]) if command == "shard" else StagePaths(read=[read])

    if not refused:
        load_pipeline(str(file), [], paths)
        return
    with pytest.raises(UserError, match=r"work/stroe is not there, and no stage that this one needs makes it") as error:
        load_pipeline(str(file), [], paths)
    assert error.value.where == f"stage one of {file}"


def test_what_a_stage_makes_that_is_not_needed_is_not_there(file: Path) -> None:
    def paths(command: str, words: Sequence[str]) -> StagePaths:
        return StagePaths(made=["work/store"]) if command == "shard" else StagePaths(read=["work/store"])

    file.write_text(TEXT.replace("needs: [shard]", "needs: []"))
    with pytest.raises(UserError, match="is not there"):
        load_pipeline(str(file), [], paths)


def test_records_are_kept_and_a_damaged_one_is_named(file: Path) -> None:
    plan = plan_of(file)
    plan.folder.mkdir(parents=True)
    records = finished(plan)
    for record in records.values():
        write_record(plan.folder, record)
    assert read_records(plan) == records
    record_file(plan.folder, "two").write_text('{"format": 2}')
    with pytest.raises(UserError, match="record of stage two cannot be read"):
        read_records(plan)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    folder, remark = tmp_path / "a", "another `reelscale run` is at work"
    with sole_use(folder), pytest.raises(UserError, match=remark), sole_use(folder):
        raise AssertionError
    with sole_use(folder):
        pass
