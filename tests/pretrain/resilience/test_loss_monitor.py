"""The judge of losses: what is a spike, when to roll back, and that its state carries all it knows."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.resilience.loss_monitor import HealthSettings, LossMonitor, Verdict

STEPS = st.lists(
    st.tuples(st.one_of(st.floats(0.01, 10), st.sampled_from([math.nan, math.inf, 1e30])), st.booleans()), max_size=60
)
SETTINGS = st.builds(
    HealthSettings,
    spike_sigmas=st.sampled_from([None, 0.5, 6.0]),
    spike_window=st.integers(4, 20),
    on_spike=st.sampled_from(["warn", "rollback"]),
    skipped_in_a_row=st.integers(1, 5),
)


def judged(watch: LossMonitor, steps: list[tuple[float, bool]]) -> list[Verdict]:
    return [watch.step(loss, skipped) for loss, skipped in steps]


def noisy(count: int, level: float = 2.0, sigma: float = 0.1, seed: int = 0) -> list[tuple[float, bool]]:
    draw = random.Random(seed)
    return [(draw.gauss(level, sigma), False) for _ in range(count)]


@given(SETTINGS, STEPS, STEPS)
def test_a_watch_that_was_saved_and_loaded_judges_as_one_undisturbed(
    settings: HealthSettings, before: list[tuple[float, bool]], after: list[tuple[float, bool]]
) -> None:
    undisturbed = LossMonitor(settings)
    judged(undisturbed, before)
    resumed = LossMonitor(settings)
    resumed.load(json.loads(json.dumps(undisturbed.state(), allow_nan=False)))
    assert judged(resumed, after) == judged(undisturbed, after)
    assert resumed.state() == undisturbed.state()


@given(st.integers(0, 10_000), st.floats(0.05, 10))
def test_losses_that_fall_with_noise_are_fine(seed: int, level: float) -> None:
    draw = random.Random(seed)
    watch = LossMonitor(HealthSettings(spike_sigmas=8, spike_window=100))
    falling = [(level * (math.exp(-step / 300) + draw.gauss(0, 0.03)), False) for step in range(400)]
    assert set(judged(watch, falling)) == {"fine"}


@pytest.mark.parametrize(("on_spike", "verdict_on_jump"), [("warn", "spike"), ("rollback", "rollback")])
def test_a_jump_is_told_once_and_does_not_blind_the_watch(on_spike: str, verdict_on_jump: str) -> None:
    watch = LossMonitor(HealthSettings.model_validate({"on_spike": on_spike}))
    steps = noisy(150)
    steps[120] = steps[130] = (3.5, False)
    assert [place for place, verdict in enumerate(judged(watch, steps)) if verdict == verdict_on_jump] == [120, 130]


def test_spikes_before_the_window_is_half_full_are_not_told() -> None:
    steps = noisy(101)
    steps[99] = (50.0, False)
    assert set(judged(LossMonitor(HealthSettings()), steps[:100])) == {"fine"}
    steps[100] = (50.0, False)
    assert judged(LossMonitor(HealthSettings()), steps)[100] == "spike"


def test_a_loss_that_stays_high_becomes_the_measure() -> None:
    watch = LossMonitor(HealthSettings(spike_window=40))
    judged(watch, noisy(40))
    verdicts = judged(watch, noisy(60, level=4.0, seed=1))
    assert verdicts[0] == "spike" and set(verdicts[25:]) == {"fine"}


def test_constant_losses_have_room_for_rounding() -> None:
    watch = LossMonitor(HealthSettings(spike_window=10))
    judged(watch, [(2.0, False)] * 10)
    assert [watch.step(loss, False) for loss in (2.0001, 2.1, 2.13)] == ["fine", "fine", "spike"]


def test_without_sigmas_no_loss_is_a_spike() -> None:
    watch = LossMonitor(HealthSettings(spike_sigmas=None))
    assert set(judged(watch, [*noisy(200), (1e9, False)])) == {"fine"}


@given(st.integers(1, 5), st.lists(st.sampled_from(["good", "skipped", "nan", "inf"]), max_size=40))
def test_every_so_many_steps_left_out_in_a_row_roll_back(limit: int, kinds: list[str]) -> None:
    watch = LossMonitor(HealthSettings(skipped_in_a_row=limit))
    values = {"good": (1.0, False), "skipped": (1.0, True), "nan": (math.nan, False), "inf": (math.inf, True)}
    run, expected = 0, []
    for kind in kinds:
        run = 0 if kind == "good" else run + 1
        expected.append("rollback" if run and run % limit == 0 else "fine")
    assert judged(watch, [values[kind] for kind in kinds]) == expected
    assert len(watch.state()["losses"]) == kinds.count("good")


def test_a_smaller_window_keeps_the_last_losses() -> None:
    watch = LossMonitor(HealthSettings(spike_window=4))
    watch.load({"losses": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "skipped": 3})
    assert watch.state() == {"losses": [3.0, 4.0, 5.0, 6.0], "skipped": 3}


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"spike_sigmas": 0}, {"spike_window": 3}, {"skipped_in_a_row": 0}, {"on_spike": "stop"}):
        with pytest.raises(ValidationError):
            HealthSettings.model_validate(wrong)
