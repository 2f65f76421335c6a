"""How long a run still takes: by its steps' pace and the pauses to come, also after a resume and a roll-back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.resilience.eta import Eta


@given(st.floats(0.01, 1e4), st.integers(0, 10**6), st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_steps_of_one_length_take_what_they_took(seconds: float, first: int, lines: list[int]) -> None:
    steps, step = first + sum(lines) + 7, first
    eta = Eta(0.0, first, validated_every=10**9)
    for line in lines:
        step += line
        left = eta.at((step - first) * seconds, step, steps, 0.0, 0.0)
        assert left == pytest.approx((steps - step) * seconds)


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 7), st.integers(0, 400))
def test_pauses_come_as_they_came(every: int, validations: int, log_steps: int, first: int) -> None:
    """Steps of 0.5 s and validations of 600: once there was one, what is left is exact at every line."""
    steps, now, validated = first + every * validations, 0.0, 0.0
    eta = Eta(now, first, every)
    for step in range(first + 1, steps + 1):
        now += 0.5
        if step % log_steps == 0:
            left = eta.at(now, step, steps, validated, 0.0)
            to_come = len([each for each in range(step, steps + 1) if each % every == 0 or each == steps])
            wanted = (steps - step) * 0.5 + to_come * 600.0 * (validated > 0)
            assert left == pytest.approx(wanted)
        if step % every == 0 or step == steps:
            now, validated = now + 600.0, validated + 600.0


def test_checkpoints_take_their_share() -> None:
    eta = Eta(0.0, 100, validated_every=1000)
    assert eta.at(60.0, 150, 300, 0.0, 10.0) == 150 * (50 / 50 + 10 / 50)


def test_what_was_waited_for_before_the_first_step_does_not_count() -> None:
    eta = Eta(100.0, 0, validated_every=1000, saved=40.0)
    assert eta.at(120.0, 20, 120, 0.0, 40.0) == 100


def test_after_a_roll_back_nothing_is_known_until_the_next_line() -> None:
    eta = Eta(0.0, 100, validated_every=1000)
    assert eta.at(50.0, 150, 200, 0.0, 0.0) == 50
    assert eta.at(90.0, 110, 200, 0.0, 0.0) is None
    assert eta.at(100.0, 120, 200, 0.0, 0.0) == 80
