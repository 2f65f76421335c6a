"""`reelscale status`, `logs` and `stop`: what is at work, jobs on a Ray cluster, and runs by their folders."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.options import Address, AsJson, named, sent_to_cluster, with_options
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.terminal.tables import print_json, print_table
from sharding.base.errors import UserError
from sharding.base.exit_codes import DONE, FAILED
from sharding.base.printable import visible, visible_lines
from sharding.base.settings import validate
from sharding.base.user_paths import expanded

_LOOK_SECONDS = 0.3
_WHICH = "a job's id, or the folder of a run"
_Which = Annotated[str, typer.Argument(metavar="ID|RUN", help=_WHICH)]


@with_options(ScrapeSettings, leaves_out=("kubernetes",))
def status(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID|RUN]...", help="runs' folders, stores, or ids of jobs; everything unless given"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="print it once, as where the output is no terminal")] = False,
    address: Address = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Show how runs, sharding, evaluations and jobs are: what is worst first, why, and what to do.

    On a terminal the view is drawn anew until Ctrl-C, or until what is named has ended. Processes of this machine are
    found by the files that they put into a folder, others by --target, or where that folder is a shared one; each is
    asked for its health and figures. With --address or RAY_ADDRESS the cluster's jobs and nodes are shown, too.

    A run is running, starting, troubled (it gets on, and something is wrong), stalled (a process says that it does not
    get on), silent (a process does not answer, or there was no word for five minutes), stopped (all is saved), or
    finished.

    Examples:

      reelscale status

      reelscale status runs/demo-pretrain-motion --json

      reelscale status runs/mine runs/other --once

      reelscale status --target node7:9480 --target node8:9480 --token-file token

      reelscale status --address head:6379
    """
    from cluster.status.live import is_live_terminal, print_once, show_live
    from cluster.status.watch import Watch

    sent_to_cluster(address, detach=False)
    watch = Watch(which or [], validate(ScrapeSettings, named(options, ScrapeSettings), "the options"))
    if as_json:
        print_json(asdict(watch.look()))
        return
    nothing = visible(f"nothing is at work: there is no process' file in {watch.targets}")
    if once or not is_live_terminal():
        print_once(watch.look(), nothing)
    else:
        show_live(watch.look, nothing, until_ended=bool(which))


def logs(
    which: _Which,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as more is printed, until the end")] = False,
    address: Address = None,
) -> None:
    """Show what a job has printed, or a run's log.

    Examples:

      reelscale logs pretrain-20260131-120000-1f3a --follow --address head:6379

      reelscale logs runs/demo-pretrain-motion
    """

    def show(text: str) -> None:
        sys.stdout.write(visible_lines(text))
        sys.stdout.flush()

    run = _run_folder(which)
    if run is not None:
        _print_log(run, follow)
        return
    sent_to_cluster(address, detach=False)
    from cluster.submission.ray_jobs import RayJobs

    jobs = RayJobs()
    if follow:
        _print_job(asdict(jobs.follow(which, show)))
    else:
        show(jobs.log(which))


def stop(
    which: _Which,
    wait: Annotated[
        float, typer.Option(min=1, max=86400, metavar="SECONDS", help="how long the end is waited for")
    ] = 600,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Ask a job or a run to save and stop, and wait for its end. The same command goes on from there.

    A job's command gets SIGTERM, and ten minutes to save in. A run is asked by a file in its folder, which its first
    rank looks for at the end of each step.

    Exit codes: 0 it has ended, 1 it failed, or has not ended in time.

    Examples:

      reelscale stop pretrain-20260131-120000-1f3a --address head:6379

      reelscale stop runs/demo-pretrain-motion
    """
    run = _run_folder(which)
    if run is not None:
        from cluster.submission.run_state import run_state, stop_run

        before = run_state(run)
        state = before if before.outcome in ("finished", "stopped") else stop_run(run, wait)
        _print_run(asdict(state), as_json)
        if state.outcome not in ("finished", "stopped"):
            print(visible(f"reelscale: {run} has not stopped within {wait:g} s: nothing works on it"), file=sys.stderr)
            raise typer.Exit(FAILED)
        return
    sent_to_cluster(address, detach=False)
    from cluster.submission.ray_jobs import RayJobs

    job = RayJobs().stop(which, wait)
    if as_json:
        print_json(asdict(job))
    else:
        _print_job(asdict(job))
    if job.ended is None:
        print(visible(f"reelscale: job {which} has not ended within {wait:g} s; it is asked to"), file=sys.stderr)
    raise typer.Exit(DONE if job.state in ("done", "stopped") else FAILED)


def _run_folder(which: str | None) -> Path | None:
    """The run's folder that is meant; None for a job's id. Raises UserError for a path that is no run's."""
    if which is None:
        return None
    from cluster.submission.run_state import is_run

    folder = expanded(which)
    if is_run(folder):
        return folder
    if folder.exists() or "/" in which:
        raise UserError("there is no run in this folder", which, "name a folder that pretrain or finetune printed")
    return None


def _print_job(job: dict[str, Any]) -> None:
    code = "" if job["exit_code"] is None else f" (exit {job['exit_code']})"
    since = job["ended"] or job["began"] or "–"
    print_table(f"job {job['job']}", {"command": job["command"], "state": f"{job['state']}{code}", "since": since})


def _print_run(run: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(run)
        return
    from cluster.status.outcomes import age

    of = "" if run["of"] is None else f" of {run['of']:,}"
    rows = {"outcome": run["outcome"], "step": f"{run['step']:,}{of}"}
    if run["loss"] is not None:
        rows["loss"] = f"{run['loss']:.4g}"
    if run["checkpoint"] is not None:
        rows["newest checkpoint"] = f"step {run['checkpoint']:,}, {age(run['checkpoint_age_seconds'])} ago"
    if run["last_word_seconds"] is not None:
        rows["last word"] = f"{age(run['last_word_seconds'])} ago"
    if run["asked_to_stop"]:
        rows["asked to stop"] = "yes"
    print_table(f"run {run['run']}", rows)


def _print_log(run: Path, follow: bool) -> None:
    """Print a run's log; `follow`: and what is added to it, until the run has ended."""
    from cluster.submission.run_state import LOG, run_state

    position = 0
    while True:
        ended = run_state(run).outcome in ("finished", "stopped")
        text = b""
        if (run / LOG).exists():
            with (run / LOG).open("rb") as file:
                file.seek(position)
                text = file.read()
        position += len(text)
        sys.stdout.write(visible_lines(text.decode(errors="replace")))
        sys.stdout.flush()
        if not follow or ended:
            return
        time.sleep(_LOOK_SECONDS)
