"""A run's log, read from its end: what went wrong, when, and how often."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.status.runbook import to_do
from cluster.status.states import Problem, Severity

_TAIL_BYTES = 2**18
_STAMP = re.compile(r"(\d\d):(\d\d):(\d\d) (.+)")
_LONGEST = 300  # characters of a line
_DAY = 86400


class Pattern(NamedTuple):
    """What a line of the log looks like that tells of a problem, how grave that is, and the alert that says what to do.

    One that presses does so for five minutes, as alerts of events do.
    """

    line: re.Pattern[str]
    severity: Severity
    alert: str


def _pattern(text: str, severity: Severity, alert: str) -> Pattern:
    return Pattern(re.compile(text), severity, f"Reelscale{alert}")


# The first that fits counts. What a line in cluster/OPERATIONS.md says more of, its table of messages has.
PATTERNS = (
    _pattern(r"^a step was left out: .*not finite \(loss scale", "note", "NotFinite"),
    _pattern(r"^a step was left out: ", "critical", "NotFinite"),
    _pattern(r"^training went wrong by step ", "warning", "LossSpike"),
    _pattern(r"^the loss of step .* is far above those before it", "note", "LossSpike"),
    _pattern(r"^damaged: ", "note", "DamagedData"),
    _pattern(r"^skipping the damaged checkpoint ", "warning", "CheckpointFailed"),
    _pattern(r"^rank \d+ on .* is slow: ", "note", "Straggler"),
    _pattern(r"^the store .* is gone ", "critical", "Stalled"),
    _pattern(r"^(metrics\.jsonl|settings-history\.jsonl) cannot be ", "warning", "DiskNearlyFull"),
    _pattern(r"^the cache keeps nothing more: ", "warning", "DiskNearlyFull"),
    _pattern(r"; training goes on$", "critical", "CheckpointFailed"),
    _pattern(r"^rank \d+: (rank \d+ is gone|the others go on without it) ", "critical", "RankDown"),
    _pattern(r"stacks in .*; the same command goes on from the last checkpoint$", "critical", "Stalled"),
    _pattern(r"^going on from the checkpoint at step ", "note", "InterruptedOften"),
    _pattern(r"^(no validation at step|the validation at step .* was broken off)", "note", "DamagedData"),
)
_NO_PROBLEM = re.compile(r"^the store .* is back after ")


def log_problems(run: str, folder: str, lines: Iterable[tuple[float, str]], pressing_seconds: float) -> list[Problem]:
    """The problems that lines (age in seconds, text; oldest first) tell of: of each kind the newest, counted.

    What is older than `pressing_seconds` is a note. The youngest problem comes first.
    """
    newest: dict[Pattern, Problem] = {}
    for seconds, line in lines:
        pattern = next((each for each in PATTERNS if each.line.search(line)), None)
        if pattern is None or _NO_PROBLEM.match(line):
            continue
        times = newest[pattern].times + 1 if pattern in newest else 1
        severity: Severity = pattern.severity if seconds <= pressing_seconds else "note"
        what = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
        newest[pattern] = Problem(run, severity, what, to_do(pattern.alert, folder), pattern.alert, seconds, times)
    return sorted(newest.values(), key=lambda problem: problem.age_seconds or 0.0)


def dated(text: str, changed: datetime.datetime, now: datetime.datetime) -> Iterator[tuple[float, str]]:
    """Age in seconds and text of a log's lines, oldest first.

    They have a time of day alone: the last was written when the file was `changed` at the latest, and one before a
    line of an earlier time of day, a day before that. So an age is at least so much, after a pause of days.
    """
    lines = [match.groups() for line in text.split("\n") if (match := _STAMP.match(line))]
    ages = []
    later = changed
    for hour, minute, second, _ in reversed(lines):
        clock = int(hour) * 3600 + int(minute) * 60 + int(second)
        since_midnight = later.hour * 3600 + later.minute * 60 + later.second
        later -= datetime.timedelta(seconds=(since_midnight - clock) % _DAY)
        ages.append(max(0.0, (now - later).total_seconds()))
    for seconds, line in zip(reversed(ages), lines, strict=True):
        yield seconds, line[3]


def read_log(path: Path, now: float) -> list[tuple[float, str]]:
    """Age in seconds and text of the last lines of a log; [] where it cannot be read."""
    try:
        with path.open("rb") as file:
            status = path.stat()
            file.seek(max(0, status.st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    changed, moment = (datetime.datetime.fromtimestamp(each) for each in (status.st_mtime, now))
    return list(dated(text, changed, moment))
