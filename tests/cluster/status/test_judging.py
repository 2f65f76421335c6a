"""What is said of a run, by pages, readiness and log lines alone; and how that is laid out."""

from __future__ import annotations

import datetime
import io
from pathlib import Path

import pytest
from rich.console import Console

from cluster.monitor import prometheus
from cluster.monitor.targets import Target
from cluster.status import problems
from cluster.status.log_problems import PATTERNS, dated, log_problems
from cluster.status.pages import Figures, parse_page
from cluster.status.runbook import runbook_lines
from cluster.status.scraping import Reply
from cluster.status.states import Outcome, Problem, Snapshot, WorkState
from cluster.status.view import Page
from cluster.status.work_state import Files, Key, eta_seconds, grouped, work_state
from cluster.submission.run_state import RunState

NOW = 1_600_000_000.0
KEY = Key("pretrain", "a", "/runs/a")
PAGE = """\
# HELP reelscale_train_step Optimizer steps taken.
# TYPE reelscale_train_step gauge
reelscale_train_step{rank="RANK"} 30
reelscale_train_steps{rank="RANK"} 120
reelscale_train_samples{rank="RANK"} 240
reelscale_train_clips_per_second{rank="RANK"} 16
reelscale_train_step_seconds_count{rank="RANK"} 30
reelscale_train_step_seconds_bucket{le="1",rank="RANK"} 30
reelscale_train_started_timestamp_seconds{rank="RANK"} 1599999000
reelscale_checkpoint_last_timestamp_seconds{rank="RANK"} 1599999900
reelscale_checkpoints_total{rank="RANK"} 9
reelscale_train_data_wait_ratio{rank="RANK"} 0.1
reelscale_ready{node="nRANK",rank="RANK",run="a"} 1
reelscale_run_info{kind="pretrain",rank="RANK",world_size="2"} 1
reelscale_disk_free_bytes{folder="run",rank="RANK"} 4e11
reelscale_disk_size_bytes{folder="run",rank="RANK"} 1e12
python_info{version="3"} 1
"""


def heard(rank: int, ready: bool | None = True, line: str = "ok: the last step 1 s ago", **changes: str) -> Reply:
    page = PAGE.replace("RANK", str(rank))
    for name, value in changes.items():
        page = "\n".join(line for line in page.split("\n") if not line.startswith(f"reelscale_{name}{{"))
        page += f"\nreelscale_{name} {value}\n" if "{" not in value else f"\nreelscale_{name}{value}\n"
    target = Target(f"127.0.0.1:{9480 + rank}", "http", "pretrain", "a", rank, f"n{rank}", "/runs/a")
    return Reply(target, ready, line, page if ready is not None else None)


def work(*replies: Reply, files: Files | None = None) -> WorkState:
    return work_state(KEY, [(each, parse_page(each.page or "")) for each in replies], files, NOW)


def by_files(outcome: Outcome, *problems: Problem) -> Files:
    return Files(RunState("/runs/a", outcome, 60, 120, 2.0, 40, 90.0, 400.0, False), problems=[*problems])


GONE = (None, "connection refused: it is gone")
STUCK = (False, "no step for 312 s (limit 300 s)")


@pytest.mark.parametrize(
    ("replies", "files", "outcome", "reason"),
    [
        ([heard(0), heard(1)], None, "running", "the last step 1 s ago"),
        ([heard(0), heard(1, *GONE)], None, "silent", "rank 1 on n1 does not answer: connection refused: it is gone"),
        ([heard(0), heard(1), heard(2, *GONE)], None, "running", "the last step 1 s ago"),  # fewer ranks than before
        ([heard(0), heard(1, *STUCK)], None, "stalled", "rank 1 on n1: not ready: no step for 312 s (limit 300 s)"),
        ([heard(0, line="ok: starting for 4 s")], None, "troubled", "1 of 2 ranks are known here"),
        ([heard(0, *GONE), heard(1, *GONE)], by_files("finished"), "finished", ""),
        ([heard(0, *GONE), heard(1, *GONE)], by_files("running"), "silent", "rank 0 on n0, rank 1 on n1 do not"),
        ([heard(0), heard(1)], by_files("silent"), "running", "the last step 1 s ago"),
        ([], by_files("silent"), "silent", "killed, or long without a word: the last one 6 min ago"),
        ([], by_files("running"), "running", "by its files alone"),
        ([heard(0), heard(1)], by_files("running", Problem("a", "critical", "a step was left out", "", "", 20.0)),
         "troubled", "a step was left out"),
        ([heard(0), heard(1)], by_files("running", Problem("a", "critical", "long ago", "", "", 400.0)),
         "running", "the last step 1 s ago"),
    ],
)  # fmt: skip
def test_outcome_and_reason(replies: list[Reply], files: Files | None, outcome: str, reason: str) -> None:
    state = work(*replies, files=files)
    assert state.outcome == outcome and state.reason.startswith(reason), state


@pytest.mark.parametrize(
    ("reply", "alert", "what"),
    [
        (heard(0, train_data_wait_ratio="0.8"), "DataBound", "rank 0 on n0 waits for data 80% of its time"),
        (heard(0, train_straggler_rank="1"), "Straggler", "rank 1 on n1 is far slower"),
        (heard(0, damaged_samples_total="3", clips_decoded_total="900"), "DamagedData", "3 samples are damaged"),
        (heard(0, checkpoint_last_timestamp_seconds="1599999300"), "CheckpointOld", "11 min old; usual are 33 s"),
        (heard(0, disk_free_bytes='{folder="run"} 1e9'), "DiskNearlyFull", "1.0 GB are left on the disk of run"),
        (heard(0, checkpoint_failures_total="2"), "CheckpointFailed", "checkpoints could not be saved: 2"),
    ],
)
def test_problems_of_now(reply: Reply, alert: str, what: str) -> None:
    assert work(heard(0), heard(1)).problems == []
    (problem,) = work(reply, heard(1)).problems
    assert problem.alert == f"Reelscale{alert}" and what in problem.what and problem.to_do, problem


def test_figures_of_a_run() -> None:
    state = work(heard(0), heard(1, train_data_wait_ratio="0.4"))
    assert (state.step, state.of, state.share, state.eta_seconds) == (30, 120, 0.25, 45.0)
    assert (state.elapsed_seconds, state.checkpoint_age_seconds, state.data_wait_ratio) == (1000.0, 100.0, 0.4)
    assert (state.world_size, state.answering, state.nodes) == (2, 2, ["n0", "n1"])
    assert eta_seconds(0, 10, 0, 5.0) is None and eta_seconds(10, 10, 80, None) == 0


def test_sharding_and_evaluation() -> None:
    page = (
        'reelscale_shard_videos_total{outcome="good"} 70\nreelscale_shard_videos_total{outcome="failed"} 5\n'
        'reelscale_shard_failures_total{kind="no video"} 5\nreelscale_shard_remaining_videos 25\n'
        "reelscale_shard_left_seconds 50\nprocess_start_time_seconds 1599999900\n"
    )
    reply = Reply(Target("127.0.0.1:1", "http", "shard", "s", 0, "n0", "/s"), True, "ok: the last video 1 s ago", page)
    state = work_state(Key("shard", "s", "/s"), [(reply, parse_page(page))], None, NOW)
    assert state.videos and (state.videos.done, state.videos.remaining, state.videos.failed) == (75, 25, 5)
    assert (state.videos.videos_per_second, state.videos.failures) == (0.5, {"no video": 5})
    assert (state.outcome, state.share, state.eta_seconds, state.elapsed_seconds) == ("running", 0.75, 50.0, 100.0)


def test_targets_named_by_hand_join_the_run_that_they_serve() -> None:
    by_hand = heard(1)
    by_hand = Reply(Target("node7:9480"), True, by_hand.line, by_hand.page)
    silent = Reply(Target("node8:9480"), None, "no word")
    pages = [(each, parse_page(each.page or "")) for each in (heard(0), by_hand, silent)]
    groups = grouped(pages)
    assert sorted(groups) == [Key("", "node8:9480", ""), KEY] and len(groups[KEY]) == 2


LOG = """\
23:59:50 damaged: sample 1
Traceback of something
00:00:10 a step was left out: a loss or a gradient is not finite
00:00:20 step 3/4
00:00:30 a step was left out: a loss or a gradient is not finite
"""


def test_a_log_is_dated_from_its_end_and_its_problems_are_counted() -> None:
    changed = datetime.datetime(2030, 5, 2, 0, 0, 31)
    lines = list(dated(LOG, changed, changed + datetime.timedelta(seconds=9)))
    assert [seconds for seconds, _ in lines] == [50, 30, 20, 10]
    left_out, damaged = log_problems("a", "/runs/a", lines, 25)
    assert (left_out.age_seconds, left_out.times, left_out.severity) == (10, 2, "critical")
    assert (damaged.age_seconds, damaged.times, damaged.severity) == (50, 1, "note")
    assert "reelscale logs /runs/a`" in damaged.to_do


def test_what_to_do_has_one_place() -> None:
    assert {pattern.alert for pattern in PATTERNS} <= set(runbook_lines())
    assert not any("OPERATIONS.md" in line for line in runbook_lines().values())


EVIL = "a\x1b]0;evil\x07\nb \u00fcber"


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_page_fits_its_terminal_and_shows_names_harmlessly(width: int, encoding: str) -> None:
    problem = Problem(EVIL, "critical", EVIL * 9, "do this " * 20, "ReelscaleStalled", 3.0)
    runs = [WorkState(EVIL, EVIL, "pretrain", "stalled", EVIL, 3, 4, 0.75, loss=2.0, problems=[problem] * 30)] * 40
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, height=24)
    page = Page(width, 24, encoding).lay_out(Snapshot("2030-05-02T10:11:12+00:00", runs, [], []), "a hint")
    console.print(page)
    out.flush()
    lines = out.buffer.getvalue().decode(encoding).rstrip("\n").split("\n")
    assert len(lines) <= 24 and max(map(len, lines)) <= width, lines
    text = "\n".join(lines)
    assert not {"\x1b", "\x07"} & set(text) and r"a\x1b]0;evil\x07\n" in text
    assert "40 stalled" in text and "more" in text and "3 s ago" in text and ("-> do this" in text or width == 40)


def test_a_page_that_is_none_is_refused() -> None:
    assert parse_page("").value("reelscale_ready") is None
    with pytest.raises(ValueError):
        parse_page("reelscale_ready{ nonsense")
    assert parse_page("reelscale_train_step NaN").whole("reelscale_train_step") is None
    assert Figures().by("reelscale_ready", "rank") == {}


def test_bounds_are_those_of_the_alerts() -> None:
    """What is wrong at one look is wrong by the alerts' numbers."""
    folder = Path(str(prometheus.__file__)).parent / "rules"
    text = " ".join(" ".join(path.read_text().split()) for path in sorted(folder.glob("*.yml")))
    for condition in (
        f"data_wait_ratio:max > {problems._BOUND} ",
        f"step_seconds_count offset 1m) >= {problems._WARM_STEPS})",
        f"started_timestamp_seconds) > {problems._WARM_SECONDS})",
        f"> {problems._DAMAGED} * sum by (run) (increase(reelscale_clips_decoded_total",
        f"unless on (run) run:reelscale_train_data_wait_ratio:max > {problems._STARVED} ",
        f"checkpoint_age_seconds:max > {problems._CHECKPOINT_SECONDS} ",
        f"checkpoint_age_seconds:max > {problems._CHECKPOINT_TIMES} * run:reelscale_checkpoint_interval",
        f"started_timestamp_seconds) > {problems._FIRST_CHECKPOINT_SECONDS} ",
        f"reelscale_disk_size_bytes < {problems._DISK_RATIO} and reelscale_disk_free_bytes < 50e9 ",
    ):
        assert condition in text, condition
    assert problems._DISK_BYTES == 50e9
