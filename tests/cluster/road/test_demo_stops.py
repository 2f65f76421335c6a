"""The demo's commands stopped and killed: what is at work saves, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.demo.__main__ import PIPELINE, QUICK_CORPORA, QUICK_RUN
from tests.demo.corpora import make_corpora
from tests.support.commands import LONGEST, ROOT, checkpoints, gone, running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # whole pipelines, on a machine that may be busy

DEMO = "import sys; from tests.demo.__main__ import _reelscale; _reelscale(*sys.argv[1:])"


def test_ctrl_c_lets_the_command_save(store: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=none", "schedule.epochs=60")
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(
            [sys.executable, "-c", DEMO, *map(str, command)],
            cwd=ROOT, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + LONGEST
        while not checkpoints(run):
            assert demo.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.02)
        os.killpg(demo.pid, signal.SIGINT)
        code = demo.wait(timeout=LONGEST)
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
    text = (tmp_path / "said").read_text()
    assert code == 75, text
    assert "with everything saved" in text and "`make demo` goes on from here" in text and "Traceback" not in text
    assert checkpoints(run)[-1] < 120


@pytest.mark.slow
def test_a_pipeline_killed_at_random_moments_ends_the_same(tmp_path: Path) -> None:
    """The moments are numbers of printed lines, and a while after: so they lie alike on any machine."""
    make_corpora(tmp_path / "corpora", corpora=QUICK_CORPORA)
    moments = random.Random(18)
    left_lines = _run_whole(tmp_path / "whole").count("\n")
    for _ in range(3):
        with running(*_pipeline(tmp_path / "killed"), folder=tmp_path) as command:
            line, seconds = moments.randint(1, left_lines // 2), moments.uniform(0, 2)
            command.until(lambda line=line: command.out.count("\n") >= line)
            time.sleep(seconds)
            left = list(command.descendants())
            command.kill()
            assert gone(left), command.said
            left_lines -= line
    end = _run_whole(tmp_path / "killed")
    assert "done already" in end and "all 7 stages are done" in end
    whole, killed = (_results(tmp_path / name) for name in ("whole", "killed"))
    assert len(whole) == 8 and killed == whole


def _pipeline(root: Path) -> tuple[str, ...]:
    """The command line of the demo's pipeline in its quick form; its corpora lie beside `root`."""
    root.mkdir(exist_ok=True)
    if not (root / "corpora").exists():
        (root / "corpora").symlink_to(root.parent / "corpora")
    quick = [f"{stage}.{setting}" for stage in ("pretrain", "finetune") for setting in QUICK_RUN]
    same = [f"{stage}.engine.compute_path=plain" for stage in ("pretrain", "finetune")]  # else the fastest is taken
    others = ("shard-motion", "shard-motion2", "evaluate-pretrain", "evaluate-finetune")
    without_ray = [f"{stage}.launcher=none" for stage in others]
    return "run", str(ROOT / PIPELINE), f"root={root}", *quick, *same, *without_ray


def _run_whole(root: Path) -> str:
    """Run the pipeline without a disturbance; what it prints. Seven commands may take longer than one."""
    with running(*_pipeline(root), folder=root) as command:
        assert command.process.wait(timeout=4 * LONGEST) == 0, command.said
        return command.out


def _results(root: Path) -> dict[str, bytes | str]:
    """The bytes of the stores' tars and of the networks, and the evaluations, by name; without the folder's own."""
    tars = {str(path.relative_to(root)): path.read_bytes() for path in root.glob("store/*/*/*.tar")}
    networks = {
        str(path.relative_to(root)): path.read_bytes() for path in root.glob("runs/*/checkpoints/*4/model.safetensors")
    }
    summaries = {
        str(path.relative_to(root)): re.sub(re.escape(str(root)), "ROOT", path.read_text())
        for path in root.glob("runs/*/evaluation/*/summary.json")
    }
    assert len(networks) == len(summaries) == 2
    return {**tars, **networks, **summaries}
