"""The demo: real footage becomes corpora, shards, networks and a report, by the commands a user types."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from sharding.base.parent_death import dying_with
from tests.demo.corpora import CORPORA, Corpus, make_corpora

WANTED_VIDEO1 = 0.80
STOPPED = 75
QUICK_CORPORA = tuple(Corpus(corpus.name, corpus.classes[-2:], train=4, val=2) for corpus in CORPORA)
PIPELINE = "configs/demo-pipeline.yaml"
QUICK_RUN = (
    "lane_batch=2", "data.clip.resize=[28,28]", "data.clip.crop=24",
    "schedule.epoch_clips=8", "schedule.epochs=2", "schedule.warmup_epochs=1", "launcher=none",
)  # fmt: skip


def main() -> int:
    """Run the demo; 0 if the pretrained network is right on at least 80 % of unseen videos."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("demo"), help="folder for all that is made")
    parser.add_argument("--store", help="directory or URL for the shards [default: ROOT/store]")
    parser.add_argument(
        "--quick", action="store_true", help="the road alone: too few clips and steps to learn anything"
    )
    args = parser.parse_args()
    root: Path = args.root
    store = (args.store or f"{root}/store").rstrip("/")
    runs = [root / "runs" / name for name in ("pretrain", "finetune")]
    begin = time.monotonic()
    _begin_anew_unless_interrupted(root, store)

    _say("1/2  corpora: clips of motion, cut from real footage")
    make_corpora(root / "corpora", corpora=QUICK_CORPORA if args.quick else CORPORA)
    _say("2/2  the pipeline: shard both, pretrain on eight motions, fine-tune on eight others, evaluate both, report")
    quick = [f"{run.name}.{setting}" for run in runs for setting in QUICK_RUN] if args.quick else []
    _reelscale("run", PIPELINE, f"root={root}", f"store={store}", *quick)
    (root / "finished").touch()
    video1 = [_told_video1(run) for run in runs]
    minutes = (time.monotonic() - begin) / 60
    print(f"took {minutes:.1f} minutes; look at {root / 'report/report.html'} (runs: {root / 'runs'})")
    return 0 if args.quick else _verdict(video1[0])


def _begin_anew_unless_interrupted(root: Path, store: str) -> None:
    """A demo that was stopped goes on; one that finished, or used another store, starts again."""
    used = root / "store.txt"
    if (root / "finished").exists() or (used.exists() and used.read_text() != store):
        for left in (root / "runs", root / "store", root / "report", root / "pipeline"):
            shutil.rmtree(left, ignore_errors=True)
        (root / "finished").unlink(missing_ok=True)
    root.mkdir(exist_ok=True, parents=True)
    used.write_text(store)


def _reelscale(*arguments: str) -> None:
    """Run one command as a user would; its failure, or a signal, ends the demo with its exit code.

    Ctrl-C is left to the command, which a terminal sends it, too; SIGTERM is passed on. The command dies with the demo.
    """
    print(f"$ reelscale {' '.join(arguments)}", flush=True)
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def leave_to_it(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if process and number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, leave_to_it) for number in (signal.SIGINT, signal.SIGTERM)}
    process = subprocess.Popen(dying_with(os.getpid(), [sys.executable, "-m", "cluster.cli", *arguments]))
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if asked or code == STOPPED:
        _say_stopped()
        sys.exit(code or STOPPED)
    if code:
        print(f"the demo stopped: `reelscale {arguments[0]}` ended with exit code {code}", file=sys.stderr)
        sys.exit(code)


def _say_stopped() -> None:
    print("the demo was stopped; `make demo` goes on from here", file=sys.stderr)


def _told_video1(run: Path) -> float:
    """Print a run's evaluation; its video@1."""
    (path,) = run.glob("evaluation/*/summary.json")
    summary = json.loads(path.read_text())
    print(
        f"{run.name:9} clip@1 {100 * summary['clip1']:5.1f} %   video@1 {100 * summary['video1']:5.1f} %   "
        f"video@5 {100 * summary['video5']:5.1f} %   on {summary['videos']} unseen videos"
    )
    return float(summary["video1"])


def _verdict(video1: float) -> int:
    if video1 < WANTED_VIDEO1:
        print(f"FAILED: video@1 after pretraining is below {100 * WANTED_VIDEO1:.0f} %", file=sys.stderr)
        return 1
    print(f"passed: video@1 after pretraining is at least {100 * WANTED_VIDEO1:.0f} %")
    return 0


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _say_stopped()
        sys.exit(STOPPED)
