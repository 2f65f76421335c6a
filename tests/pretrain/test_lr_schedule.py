"""Learning rates: warm-up, drops and cosine, by samples whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.lr_schedule import ScheduleSettings, highest_rate, learning_rate, total_steps
from pretrain.settings import DataSettings, TrainSettings
from pretrain.training.trainer import rate_at

PAPER = ScheduleSettings()  # 45 epochs of a million clips, 10 of them warm-up, a drop every 10


def rate(schedule: ScheduleSettings, epoch: float, lanes: int = 1) -> float:
    return learning_rate(schedule, lanes, round(epoch * schedule.epoch_clips))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1e-4), (5, 0.00505), (10, 0.01), (19.999, 0.01), (20, 1e-3), (30, 1e-4), (40, 1e-5), (44.9, 1e-5)],
)
def test_the_papers_schedule(epoch: float, expected: float) -> None:
    assert rate(PAPER, epoch) == pytest.approx(expected)
    assert rate(PAPER, epoch, lanes=64) == pytest.approx(64 * expected)


@pytest.mark.parametrize(("epoch", "share"), [(2, 1.0), (4, 0.8535534), (6, 0.5), (8, 0.1464466), (10, 0.0), (11, 0.0)])
def test_a_cosine_from_the_end_of_the_warm_up_to_zero(epoch: float, share: float) -> None:
    schedule = ScheduleSettings(lr=0.2, epoch_clips=1000, epochs=10, warmup_epochs=2, decay="cosine")
    assert rate(schedule, epoch) == pytest.approx(0.2 * share, abs=1e-7)


def test_a_constant_rate_and_no_warm_up() -> None:
    schedule = ScheduleSettings(lr=0.3, epoch_clips=10, epochs=4, warmup_epochs=0, decay="constant")
    assert [rate(schedule, epoch) for epoch in (0, 1, 3.9)] == [0.3] * 3
    only = ScheduleSettings(lr=0.3, epoch_clips=10, epochs=2, warmup_epochs=2, decay="cosine")
    assert rate(only, 1) == pytest.approx(0.3 * 0.505)


@given(st.sampled_from(["steps", "cosine", "constant"]), st.floats(0.5, 50), st.floats(0, 20), st.integers(0, 60_000))
def test_it_rises_and_then_never_again(decay: str, epochs: float, warmup: float, samples: int) -> None:
    schedule = ScheduleSettings.model_validate(
        {"epoch_clips": 1000, "epochs": epochs, "warmup_epochs": warmup, "decay": decay}
    )
    now, later = (learning_rate(schedule, 1, at) for at in (samples, samples + 50))
    assert 0 <= now <= schedule.lr * (1 + 1e-12)
    if (samples + 50) / 1000 < warmup:
        assert later > now
    elif samples / 1000 >= warmup:
        assert later <= now * (1 + 1e-12)


@pytest.mark.parametrize(
    ("gpus", "lr", "epoch_clips", "expected"),
    [  # the paper's fine-tuning on HMDB51 and on UCF101, on 8 GPUs of 4 clips
        (8, 0.0002, 40_000, {0: 1.6e-3, 79_968: 1.6e-3, 80_000: 1.6e-4, 160_000: 1.6e-5, 240_000: 1.6e-6}),
        (8, 0.0001, 100_000, {0: 8e-4, 199_968: 8e-4, 200_000: 8e-5, 400_000: 8e-6, 600_000: 8e-7, 799_968: 8e-7}),
    ],
)
def test_the_papers_fine_tuning(gpus: int, lr: float, epoch_clips: int, expected: dict[int, float]) -> None:
    schedule = ScheduleSettings(
        lr=lr, epoch_clips=epoch_clips, epochs=8, warmup_epochs=0, decay="steps", step_epochs=2, gamma=0.1
    )
    assert {at: learning_rate(schedule, gpus, at) for at in expected} == pytest.approx(expected)
    assert total_steps(schedule, gpus * 4) == 8 * epoch_clips / 32


def test_i3ds_rate_by_fixed_drops() -> None:
    """kinetics-i3d: 0.1 in all, divided by ten when training stalls; here after 20 and 40 of 50 epochs."""
    schedule = ScheduleSettings(lr=0.1 / 64, epoch_clips=240_000, epochs=50, warmup_epochs=0, step_epochs=20)
    found = [rate(schedule, epoch, lanes=64) for epoch in (0, 19.99, 20, 39.99, 40, 49.99)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@given(st.floats(0.5, 50), st.floats(0.01, 20), st.sampled_from(["steps", "cosine", "constant"]), st.integers(1, 64))
def test_the_warm_up_ends_in_the_peak_without_a_jump(epochs: float, warmup: float, decay: str, lanes: int) -> None:
    schedule = ScheduleSettings.model_validate(
        {"epoch_clips": 10_000, "epochs": epochs + warmup, "warmup_epochs": warmup, "decay": decay, "step_epochs": 0.5}
    )
    peak, end = schedule.lr * lanes, schedule.clips(warmup)
    assert learning_rate(schedule, lanes, 0) == pytest.approx(peak / 100)
    assert learning_rate(schedule, lanes, end) == pytest.approx(peak)
    assert learning_rate(schedule, lanes, end - 1) == pytest.approx(peak - 0.99 * peak / end)
    assert learning_rate(schedule, lanes, end - 1) < peak


def test_the_highest_rate_is_one_that_the_run_reaches() -> None:
    assert highest_rate(PAPER, lanes=64, batch=512) == pytest.approx(0.64)
    flat = ScheduleSettings(lr=0.3, epoch_clips=10, epochs=1, warmup_epochs=0, decay="constant")
    assert highest_rate(flat, lanes=2, batch=20) == pytest.approx(0.6)
    # 500 steps of 10 clips, the last at 4990 of the 10,000 clips of the warm-up
    short = ScheduleSettings(lr=0.1, epoch_clips=1000, epochs=5)
    assert highest_rate(short, lanes=2, batch=10) == pytest.approx(0.2 * (0.01 + 0.99 * 0.499))
    even = ScheduleSettings(lr=0.1, epoch_clips=1000, epochs=10)
    assert highest_rate(even, lanes=1, batch=10) == learning_rate(even, 1, 9990) < 0.1


def test_drops_come_at_their_very_sample() -> None:
    schedule = ScheduleSettings(lr=1.0, epoch_clips=1000, epochs=1, warmup_epochs=0.1, step_epochs=0.2)
    found = [learning_rate(schedule, 1, at) for at in (299, 300, 499, 500, 699, 700, 899, 900)]
    assert found == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize(
    ("rates", "output"), [({"stem": -0.1}, "0"), ({"head": float("nan")}, "finite"), ({"head": "x"}, "number")]
)
def test_rates_of_parts_are_numbers_from_zero_on(rates: dict[str, Any], output: str) -> None:
    with pytest.raises(ValidationError, match=output):
        ScheduleSettings(rates=rates)
    assert ScheduleSettings(rates={"stem": 0, "stages": 0.01}).rates == {"stem": 0.0, "stages": 0.01}


def test_the_last_step_is_a_full_one() -> None:
    schedule = ScheduleSettings(epoch_clips=100, epochs=2.5)
    assert schedule.total_samples() == 250
    assert ScheduleSettings(epoch_clips=100, epochs=0.07).total_samples() == 7  # 0.07 × 100 is above 7 in floats
    assert ScheduleSettings(epoch_clips=3, epochs=0.1).total_samples() == 1
    assert [total_steps(schedule, batch) for batch in (1, 50, 100, 249, 250, 1000)] == [250, 5, 3, 2, 1, 1]


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 40))
def test_another_batch_has_the_same_rate_at_the_same_samples(lane_batch: int, times: int, step: int) -> None:
    schedule = ScheduleSettings(lr=0.1, epoch_clips=40, epochs=9, warmup_epochs=3, step_epochs=2)
    data = DataSettings(store="nowhere")
    small = TrainSettings(data=data, lanes=4, lane_batch=lane_batch, schedule=schedule)
    large = TrainSettings(data=data, lanes=4, lane_batch=lane_batch * times, schedule=schedule)
    assert rate_at(large, step) == rate_at(small, step * times)
