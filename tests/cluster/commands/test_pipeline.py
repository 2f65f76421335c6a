"""`reelscale run`: stages side by side, failing, stopped and killed; and what is refused before the first begins."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cluster.conftest import Say
from tests.support.commands import checkpoints, gone, reelscale, refused, running, succeeded

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


def pipeline(folder: Path, *stages: str, parallel: int = 1) -> Path:
    file = folder / "all.yaml"
    lines = "".join(f"  - {stage}\n" for stage in stages)
    file.write_text(f"folder: records\nparallel: {parallel}\nstages:\n{lines}")
    return file


def look(name: str, store: Path, needs: str = "[]") -> str:
    return f"{{name: {name}, command: shards inspect, arguments: [{store}, --out, {name}], needs: {needs}}}"


def outcomes(said: str) -> dict[str, str]:
    return {stage["stage"]: stage["outcome"] for stage in json.loads(said)["stages"]}


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("{name: b, command: pretrain, config: tiny.yaml, overrides: [lane_bach=2]}", ["lane_bach", "lane_batch"]),
        ("{name: b, command: finetune, config: tiny.yaml, overrides: [data.store=s]}", ["starts from a run"]),
        ("{name: b, command: shard, arguments: [corpus]}", ["Missing argument 'store'"]),
        ("{name: b, command: shard, arguments: [c, s, --fast]}", ["No such option: --fast"]),
        ("{name: b, command: evaluate}", ["Missing argument 'config'"]),
        ("{name: b, command: shard, arguments: [corps, s]}", ["/corps is not there"]),
        ("{name: b, command: pretrain, config: tiny.yaml, overrides: [data.store=stroe]}", ["/stroe is not there"]),
        ("{name: b, command: report, arguments: [runs/none]}", ["/runs/none is not there"]),
        ("{name: b, command: report, arguments: [--help]}", ["only shows its help"]),
        ("{name: b, command: shard, arguments: [c, s, --detach]}", ["handed over is not done"]),
    ],
)
def test_every_stage_is_checked_before_the_first_begins(
    say: Say, recipe: Path, store: Path, tmp_path: Path, stage: str, parts: list[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(recipe.read_text())
    refused(say("run", pipeline(tmp_path, look("a", store), stage)), *parts, "stage b of")
    assert not (tmp_path / "records").exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(say: Say, store: Path, tmp_path: Path) -> None:
    file = pipeline(tmp_path, look("a", store), look("b", store, "[a]"))
    shown = succeeded(say("run", file, "--dry-run")).stdout
    assert f"reelscale shards inspect {store} --out b" in shown and shown.count("to do") == 2
    plan = json.loads(succeeded(say("run", file, "--dry-run", "--json")).stdout)
    assert [(stage["stage"], stage["state"], stage["needs"]) for stage in plan["stages"]] == [
        ("a", "to do", []),
        ("b", "to do", ["a"]),
    ]
    assert not (tmp_path / "records").exists()


@pytest.mark.slow
def test_what_is_done_is_passed_over(store: Path, tmp_path: Path) -> None:
    file = pipeline(tmp_path, look("a", store), look("b", store), look("c", store, "[a, b]"), parallel=2)
    first = succeeded(reelscale("run", file, "--json", folder=tmp_path))
    assert outcomes(first.stdout) == {"a": "done", "b": "done", "c": "done"}
    assert "[a] " in first.stderr and f"[c]   {'samples':<22} 12" in first.stderr
    again = succeeded(reelscale("run", file, "--again", "a", folder=tmp_path)).stdout
    assert "b: done already" in again and "a: runs again, and so does what needs it: it was asked for" in again
    assert "c: runs again" in again and "all 3 stages are done" in again
    log = (tmp_path / "records" / "a.log").read_text()
    assert log.count(f"$ reelscale shards inspect {store} --out a\n") == 2 and log.count("samples  ") == 2


@pytest.mark.slow
def test_a_stage_that_fails_ends_the_pipeline(store: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    verify = f"{{name: a, command: shards verify, arguments: [{bad}], retries: 2, needs: []}}"
    mistake = reelscale("run", pipeline(tmp_path, verify, look("b", store)), "--json", folder=tmp_path)
    assert mistake.returncode == 2
    assert f"stage a ended with exit code 2; see {tmp_path}/records/a.log" in mistake.stderr
    assert outcomes(mistake.stdout) == {"a": "failed", "b": "not begun"}

    for path in store.rglob("*"):
        if path.is_file():
            (bad / path.relative_to(store)).parent.mkdir(parents=True, exist_ok=True)
            (bad / path.relative_to(store)).write_bytes(path.read_bytes())
    tar = next(bad.glob("train/*.tar"))
    tar.write_bytes(tar.read_bytes()[:1000])
    failed = reelscale("run", tmp_path / "all.yaml", "--json", folder=tmp_path)
    assert failed.returncode == 1
    assert "a: ended with exit code 1; try 2 of 3 begins" in failed.stderr and "try 3 of 3" in failed.stderr
    assert [stage["tries"] for stage in json.loads(failed.stdout)["stages"]] == [3, 0]
    tar.write_bytes(next(store.glob("train/*.tar")).read_bytes())
    mended = succeeded(reelscale("run", tmp_path / "all.yaml", "--json", folder=tmp_path))
    assert outcomes(mended.stdout) == {"a": "done", "b": "done"}


@pytest.mark.slow
def test_a_signal_has_the_stages_save_and_a_kill_leaves_none(store: Path, recipe: Path, tmp_path: Path) -> None:
    settings = f'["data.store={store}", launcher=none, schedule.epochs=60, ranks=2]'
    stages = [
        f"{{name: {name}, command: pretrain, config: {recipe}, overrides: {settings}, needs: []}}" for name in "ab"
    ]
    file = pipeline(tmp_path, *stages, parallel=2)
    runs = [tmp_path / name for name in "ab"]
    command = ("run", file, *(f"{run.name}.run={run}" for run in runs))
    with running(*command, folder=tmp_path) as killed:
        killed.until(lambda: all(map(checkpoints, runs)))
        left = list(killed.descendants())
        assert len(left) >= 6
        killed.kill()
        assert gone(left)
    with running(*command, folder=tmp_path) as stopped:
        stopped.until(lambda: stopped.out.count("step ") > 4)
        os.killpg(stopped.process.pid, signal.SIGINT)
        assert stopped.exit_code() == 75, stopped.said
        assert "a: stopped with everything saved" in stopped.out and "the same command goes on" in stopped.err
        assert "Traceback" not in stopped.err + stopped.out and stopped.descendants() == {}
    assert not list((tmp_path / "records").glob("*.json"))


@pytest.mark.slow
def test_a_run_that_is_stopped_is_not_tried_again(store: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    settings = f'["data.store={store}", launcher=none, schedule.epochs=600, "run={run}"]'
    stage = f"{{name: a, command: pretrain, config: {recipe}, overrides: {settings}, retries: 2, needs: []}}"
    with running("run", pipeline(tmp_path, stage), folder=tmp_path) as stopped:
        stopped.until(lambda: checkpoints(run))
        succeeded(reelscale("stop", run, folder=tmp_path))
        assert stopped.exit_code() == 75, stopped.said
        assert "a: stopped with everything saved" in stopped.out and "begins" not in stopped.out, stopped.said
