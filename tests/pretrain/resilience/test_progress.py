"""Whether a process gets on: a pure function of what it does, since when, and the limits."""

from __future__ import annotations

import itertools

import pytest

from pretrain.resilience.progress import Phase, Progress, ReadinessSettings, Stage, Unit, stall

LIMITS = ReadinessSettings(
    start_seconds=10, stall_seconds=20, validation_seconds=30, saving_seconds=40, waiting_seconds=50
)


class _Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("phase", "limit", "words"),
    [
        ("starting", 10, "starting for 11 s (limit 10 s)"),
        ("working", 20, "no step for 21 s (limit 20 s)"),
        ("validating", 30, "validating for 31 s (limit 30 s)"),
        ("saving", 40, "standing still for a checkpoint for 41 s (limit 40 s)"),
        ("waiting", 50, "waiting for a store that is out of reach for 51 s (limit 50 s)"),
    ],
)
def test_each_phase_has_its_limit(phase: Phase, limit: int, words: str) -> None:
    assert stall(Stage(phase, 100), "step", 100 + limit, LIMITS) is None
    assert stall(Stage(phase, 100), "step", 100 + limit + 1, LIMITS) == words


@pytest.mark.parametrize(("unit", "limit"), [("step", 300), ("video", 1800)])
def test_videos_may_take_longer_than_steps_unless_it_is_said(unit: Unit, limit: int) -> None:
    limits = ReadinessSettings()
    assert stall(Stage("working", 0), unit, limit, limits) is None
    assert stall(Stage("working", 0), unit, limit + 1, limits) == f"no {unit} for {limit + 1} s (limit {limit} s)"


@pytest.mark.parametrize(("seconds", "limit"), [(0.2, 30), (1.4, 30), (30, 600)])
def test_a_step_may_take_many_times_as_long_as_those_before_it(seconds: float, limit: int) -> None:
    clock, limits = _Clock(), ReadinessSettings()
    progress = Progress("step", clock)
    progress.advance()
    for _ in range(5):
        with progress.during("validating"):  # is no step's time
            clock.seconds += 1000
        clock.seconds += seconds
        progress.advance()
    clock.seconds += limit
    assert progress.stall(limits) is None
    clock.seconds += 1
    assert progress.stall(limits) == f"no step for {limit + 1} s (limit {limit} s)"
    assert progress.stall(ReadinessSettings(stall_seconds=1000)) is None
    progress.begin()
    progress.advance()
    clock.seconds += 300
    assert progress.stall(limits) is None, "the steps before a new beginning say nothing"


@pytest.mark.parametrize("seconds", [0.2, 30.0])
def test_the_mean_follows_the_steps(seconds: float) -> None:
    clock = _Clock()
    progress = Progress("step", clock)
    for each in [*[5.0] * 20, *[seconds] * 60]:
        clock.seconds += each
        progress.advance()
    assert progress._stage.pace == pytest.approx(seconds, rel=0.1)


def test_a_run_from_its_start_to_its_end() -> None:
    clock = _Clock()
    progress = Progress("step", clock)
    reasons = []

    def after(seconds: float) -> None:
        clock.seconds += seconds
        reasons.append(progress.stall(LIMITS))

    after(10)
    progress.advance()
    after(20)  # not counted from the start
    with progress.during("validating"):
        after(30)
    after(20)  # not counted from the last step, before the validation
    progress.advance()
    progress.wait()
    after(49)
    progress.wait()  # goes on
    after(1)
    assert reasons == [None] * 6
    after(1)
    progress.advance()
    after(21)
    with progress.during("saving"):
        after(41)
    progress.begin()
    after(11)
    assert [reason and reason.partition(" for ")[0] for reason in reasons[6:]] == [
        "waiting", "no step", "standing still", "starting",
    ]  # fmt: skip


@pytest.mark.parametrize("phase", ["validating", "saving"])
def test_a_wait_within_another_phase_is_that_phases(phase: Phase) -> None:
    clock = _Clock()
    progress = Progress("step", clock)
    with progress.during(phase):
        progress.wait()
        assert not progress.describe().startswith("waiting")
    assert progress.describe() == "starting for 0 s"


def test_a_phase_that_an_error_ends_is_over() -> None:
    progress = Progress("step", _Clock())
    progress.advance()
    with pytest.raises(RuntimeError), progress.during("saving"):
        raise RuntimeError
    assert progress.describe() == "the last step 0 s ago"


def test_what_is_being_done_is_said_of_every_phase() -> None:
    lines = set()
    for phase, unit in itertools.product(("starting", "working", "validating", "saving", "waiting"), ("step", "video")):
        progress = Progress(unit, _Clock())  # type: ignore[arg-type]
        with progress.during(phase):  # type: ignore[arg-type]
            lines.add(progress.describe())
    assert len(lines) == 6
