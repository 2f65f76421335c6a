"""Runs the study's trials side by side, each by the commands of a user. What is done is not done again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pretrain.evaluation.files import evaluations_of
from sharding.base.parent_death import dying_with
from tests.demo.corpora import CORPORA, Corpus, make_corpora
from tests.study.plan import VIDEOS_A_CLASS, Trial

HERE = Path(__file__).parent
SHARDING = Path(__file__).parents[2] / "configs" / "demo-shard.yaml"
CLIPS = 5


class CommandFailed(Exception):
    """A command of the study did not end well; the message has its last lines."""


def make_stores(root: Path, quick: bool = False) -> None:
    """The motion corpora and their stores: one to pretrain on, and one for each number of videos a class."""
    corpora = CORPORA if not quick else tuple(Corpus(each.name, each.classes, train=2, val=1) for each in CORPORA)
    folders = make_corpora(root / "corpora", corpora=corpora)
    _shard(folders["motion"], root / "store" / "motion", root)
    for videos in VIDEOS_A_CLASS:
        few = root / "corpora" / f"motion2-{videos}"
        if not few.exists():
            _choose(folders["motion2"], few, videos)
        _shard(few, root / "store" / few.name, root)


def run_trials(trials: list[Trial], root: Path, side_by_side: int, quick: bool = False) -> None:
    """Train and evaluate them all, `side_by_side` at a time, one CPU thread each. Raises CommandFailed for one."""
    ends: dict[str, Future[None]] = {}
    begin, done, lock = time.monotonic(), 0, threading.Lock()

    def run(trial: Trial) -> None:
        nonlocal done
        if trial.after:
            ends[trial.after].result()
        if not evaluations_of(root / "runs" / trial.name):
            overrides = trial.overrides(str(root), quick)
            _reelscale(root / "logs" / f"{trial.name}.txt", trial.command, str(HERE / trial.recipe), *overrides)
            _evaluate(trial, root)
        with lock:
            done += 1
            minutes = (time.monotonic() - begin) / 60
            left = minutes / done * (len(trials) - done)
            print(f"{done}/{len(trials)}  {trial.name}  {minutes:.1f} minutes, about {left:.0f} to go", flush=True)

    with ThreadPoolExecutor(side_by_side) as pool:
        for trial in trials:  # first come, first served: what a trial starts from is running before it
            ends[trial.name] = pool.submit(run, trial)
        try:
            for end in ends.values():
                end.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _evaluate(trial: Trial, root: Path) -> None:
    recipe = HERE.parents[1] / "configs" / "demo-evaluate.yaml"
    settings = [f"run={root}/runs/{trial.name}", f"clips={CLIPS}", "launcher=none", "monitor.port=0"]
    _reelscale(root / "logs" / f"{trial.name}.txt", "evaluate", str(recipe), *settings)


def _shard(corpus: Path, store: Path, root: Path) -> None:
    if not (store / "done").exists():
        _reelscale(root / "logs" / f"{store.name}.txt", "shard", str(corpus), str(store), "--config", str(SHARDING))
        (store / "done").touch()


def _choose(corpus: Path, to: Path, videos: int) -> None:
    """A corpus of the first training videos of each class, and of all that validate."""
    shutil.copytree(corpus / "val", to.with_suffix(".part") / "val", dirs_exist_ok=True)
    for folder in sorted((corpus / "train").iterdir()):
        chosen = [path for path in sorted(folder.iterdir()) if not path.name.startswith("broken")][:videos]
        for path in chosen:
            copy = to.with_suffix(".part") / "train" / folder.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    to.with_suffix(".part").rename(to)


def _reelscale(log: Path, *arguments: str) -> None:
    """Run one command, its output appended to `log`. It dies with the study."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = dying_with(os.getpid(), [sys.executable, "-m", "cluster.cli", *arguments])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise CommandFailed(f"reelscale {' '.join(arguments)}: exit {code}\n{tail}")
