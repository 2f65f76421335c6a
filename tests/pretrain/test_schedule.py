"""Learning rates: warm-up, drops and cosine, by samples whatever the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.schedule import ScheduleSettings, learning_rate, total_steps
from pretrain.settings import DataSettings, TrainSettings
from pretrain.trainer import rate_at

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


def test_the_last_step_is_a_full_one() -> None:
    schedule = ScheduleSettings(epoch_clips=100, epochs=2.5)
    assert schedule.total_samples() == 250
    assert [total_steps(schedule, batch) for batch in (1, 50, 100, 249, 250, 1000)] == [250, 5, 3, 2, 1, 1]


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 40))
def test_another_batch_has_the_same_rate_at_the_same_samples(lane_batch: int, times: int, step: int) -> None:
    schedule = ScheduleSettings(lr=0.1, epoch_clips=40, epochs=9, warmup_epochs=3, step_epochs=2)
    data = DataSettings(store="nowhere")
    small = TrainSettings(data=data, lanes=4, lane_batch=lane_batch, schedule=schedule)
    large = TrainSettings(data=data, lanes=4, lane_batch=lane_batch * times, schedule=schedule)
    assert rate_at(large, step) == rate_at(small, step * times)
