"""What a run counts as it goes on: how often it was interrupted, and the time that is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.training.resume import count_interruptions
from pretrain.training.state import Position


def _going_on(starts: int, **state: Any) -> Position:
    position = Position()
    count_interruptions(position, Checkpoint(7, {}, {}, {}, state), starts)
    return position


@pytest.mark.parametrize(("starts", "interruptions", "lost"), [(1, 3, 50), (2, 4, 50)])
def test_what_was_killed_has_lost_the_time_since_its_checkpoint(starts: int, interruptions: int, lost: int) -> None:
    """Of several starts that saved nothing, too: all of their time."""
    position = _going_on(starts, last=False, time=time.time() - 20, interruptions=2, lost_seconds=30.0)
    assert position.interruptions == interruptions and position.lost_seconds == pytest.approx(lost, abs=5)


def test_what_stopped_in_order_has_lost_nothing() -> None:
    position = _going_on(1, last=True, time=time.time() - 1e6, interruptions=2, lost_seconds=30.0)
    assert (position.interruptions, position.lost_seconds) == (2, 30.0)


def test_a_checkpoint_that_does_not_say_and_a_clock_that_is_behind_cost_nothing() -> None:
    assert (_going_on(1).interruptions, _going_on(1).lost_seconds) == (0, 0.0)
    behind = _going_on(1, last=False, time=time.time() + 1000)
    assert (behind.interruptions, behind.lost_seconds) == (1, 0.0)
