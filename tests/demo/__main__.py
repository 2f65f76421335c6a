"""The demo: real footage becomes corpora, shards, networks and a report, by the commands a user types."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.demo.corpora import make_corpora

ROOT = Path("demo")
WANTED_VIDEO1 = 0.80
PRETRAIN, FINETUNE = ROOT / "runs/pretrain", ROOT / "runs/finetune"


def main() -> int:
    """Run the demo; 0 if the pretrained network is right on at least 80 % of unseen videos."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--store", default=str(ROOT / "store"), help="directory or URL for the shards")
    store = parser.parse_args().store.rstrip("/")
    begin = time.monotonic()
    _begin_anew_unless_interrupted(store)

    _say("1/6  corpora: clips of motion, cut from real footage")
    make_corpora(ROOT / "corpora")
    _say("2/6  shard both corpora")
    for corpus in ("motion", "motion2"):
        _reelscale("shard", f"{ROOT}/corpora/{corpus}", f"{store}/{corpus}", "--config", "configs/demo-shard.yaml")
    _say("3/6  pretrain R(2+1)D on eight motions")
    _reelscale("pretrain", "configs/demo-pretrain.yaml", f"data.store={store}/motion", f"run={PRETRAIN}")
    _say("4/6  fine-tune it on eight others")
    _reelscale(
        "finetune", "configs/demo-finetune.yaml",
        f"data.store={store}/motion2", f"init.run={PRETRAIN}", f"run={FINETUNE}",
    )  # fmt: skip
    _say("5/6  evaluate both on footage they never saw")
    for run in (PRETRAIN, FINETUNE):
        _reelscale("evaluate", "configs/demo-evaluate.yaml", f"run={run}")
    _say("6/6  report")
    _reelscale("report", str(PRETRAIN), str(FINETUNE), "--out", f"{ROOT}/report")
    (ROOT / "finished").touch()
    return _verdict(time.monotonic() - begin)


def _begin_anew_unless_interrupted(store: str) -> None:
    """A demo that was stopped goes on; one that finished, or used another store, starts again."""
    used = ROOT / "store.txt"
    if (ROOT / "finished").exists() or (used.exists() and used.read_text() != store):
        for left in (ROOT / "runs", ROOT / "store", ROOT / "report"):
            shutil.rmtree(left, ignore_errors=True)
        (ROOT / "finished").unlink(missing_ok=True)
    ROOT.mkdir(exist_ok=True)
    used.write_text(store)


def _reelscale(*arguments: str) -> None:
    """Run one command as a user would; its failure ends the demo with its exit code."""
    print(f"$ reelscale {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "cluster.cli", *arguments], check=False).returncode
    if code:
        print(f"the demo stopped: `reelscale {arguments[0]}` ended with exit code {code}", file=sys.stderr)
        sys.exit(code)


def _verdict(seconds: float) -> int:
    figures = {}
    for run in (PRETRAIN, FINETUNE):
        summary = json.loads((run / "evaluation/summary.json").read_text())
        figures[run.name] = summary["video1"]
        print(
            f"{run.name:9} clip@1 {100 * summary['clip1']:5.1f} %   video@1 {100 * summary['video1']:5.1f} %   "
            f"video@5 {100 * summary['video5']:5.1f} %   on {summary['videos']} unseen videos"
        )
    print(f"took {seconds / 60:.1f} minutes; look at {ROOT / 'report/report.html'} (runs: {ROOT / 'runs'})")
    if figures["pretrain"] < WANTED_VIDEO1:
        print(f"FAILED: video@1 after pretraining is below {100 * WANTED_VIDEO1:.0f} %", file=sys.stderr)
        return 1
    print(f"passed: video@1 after pretraining is at least {100 * WANTED_VIDEO1:.0f} %")
    return 0


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
