"""The study: `python -m tests.study` trains all of it, or goes on where it was stopped, and writes its page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.study.page import draw, tables, with_section
from tests.study.plan import trials
from tests.study.results import read_result
from tests.study.running import CommandFailed, make_stores, run_trials


def main() -> int:
    """Run the study; 0 once its page is written."""
    parser = argparse.ArgumentParser(prog="python -m tests.study", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("study"), help="folder for all that is made")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--side-by-side", type=int, default=2, help="runs at a time, each on a core")
    parser.add_argument("--networks", nargs="*", help="forms of network, beside R(2+1)D; all unless given")
    parser.add_argument("--quick", action="store_true", help="the road alone: too few clips to learn anything")
    parser.add_argument("--picture", type=Path, help="the picture's file; study.png in the folder unless given")
    parser.add_argument("--readme", type=Path, help="a document whose section on the study is written anew")
    arguments = parser.parse_args()
    begin, root = time.monotonic(), arguments.root.resolve()
    chosen = () if arguments.networks is None else (tuple(arguments.networks),)
    plan = trials(arguments.seeds, *chosen)
    try:
        make_stores(root, arguments.quick)
        run_trials(plan, root, arguments.side_by_side, arguments.quick)
    except CommandFailed as error:
        print(error)
        return 1
    results = [read_result(trial, root / "runs" / trial.name) for trial in plan]
    text = tables(results)
    (root / "study.md").write_text(text)
    picture = arguments.picture or root / "study.png"
    draw(results, picture)
    print(f"\n{text}\ntook {(time.monotonic() - begin) / 60:.0f} minutes; the picture: {picture}")
    if arguments.readme:
        arguments.readme.write_text(with_section(arguments.readme.read_text(), text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
