"""A step's figures: summed over passes and ranks, and the word to stop; a rank's own seconds."""

from __future__ import annotations

import time

import pytest
import torch

from pretrain.engine.distributed import World
from pretrain.training.batch_stream import Repeatable
from pretrain.training.state import Position
from pretrain.training.step import DeviceTime, StepClock, StepReport, StepTimes, right_clips

ALONE = World(0, 1, torch.device("cpu"))


class Two(World):
    """As if another rank had summed the same figures, and was asked to stop."""

    def sum_(self, tensor: torch.Tensor) -> None:
        tensor *= 2
        tensor[-1] += 1


TAKEN = torch.tensor([1.0, 2.5])  # an engine's verdict


def logits(*tops: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tops), 4).float()


def test_passes_are_summed() -> None:
    report = StepReport(7, 700, 0.1)
    report.add(torch.eye(4)[:2], logits(0, 2), torch.tensor(1.5))
    report.add(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), logits(2), torch.tensor(3.0, dtype=torch.bfloat16))
    report.send(ALONE, False, TAKEN)
    report.read()
    assert (report.clips, report.right, report.loss, report.mean_loss) == (3, 2, 6.0, 2.0)
    assert (report.skipped, report.gradient_norm, report.stopping) == (False, 2.5, False)


def test_a_step_left_out_is_told_as_such_by_all_ranks() -> None:
    report = StepReport(1, 4, 0.1)
    report.add(torch.eye(4), logits(0, 1, 2, 0), torch.tensor(float("nan")))
    report.send(Two(0, 2, torch.device("cpu")), False, torch.tensor([0.0, float("inf")]))
    report.read()
    assert report.skipped and report.gradient_norm == float("inf")


def test_figures_are_those_of_the_moment_they_were_sent() -> None:
    """They are read when the next step has been sent, and its verdict is there."""
    verdict, clock = TAKEN.clone(), StepClock(torch.device("cpu"))
    report = StepReport(1, 4, 0.1)
    report.add(torch.eye(4), logits(0, 1, 2, 0), torch.tensor(2.0))
    clock.begin()
    clock.own.end()
    clock.exchange.begin()
    clock.exchange.end()
    clock.whole.end()
    report.send(ALONE, False, verdict, clock.step())
    verdict.zero_()
    clock.own.begin()
    time.sleep(0.05)
    clock.own.end()
    report.read()
    own, whole, exchange = report.times
    assert not report.skipped and 0 < own + exchange <= whole and own < 0.05 <= clock.step()().own
    assert clock.step()() == StepTimes(0.0, 0.0, 0.0)


@pytest.mark.parametrize("stop", [True, False])
def test_one_rank_that_is_to_stop_stops_all(stop: bool) -> None:
    report = StepReport(1, 4, 0.1)
    report.add(torch.eye(4), logits(0, 1, 2, 0), torch.tensor(2.0))
    report.send(Two(0, 2, torch.device("cpu")), stop, TAKEN)
    report.read()
    assert report.stopping and not report.absent
    assert (report.clips, report.right, report.mean_loss) == (8, 6, 2.0)


def test_one_rank_without_clips_leaves_a_step_out_on_all() -> None:
    class Other(World):
        def sum_(self, tensor: torch.Tensor) -> None:
            tensor[-2] += 1

    for report, world in (
        (StepReport(1, 4, 0.1, absent=True), ALONE),
        (StepReport(1, 4, 0.1), Other(0, 2, ALONE.device)),
    ):
        report.add(torch.eye(4), logits(0, 1, 2, 0), torch.tensor(2.0))
        report.send(world, False, TAKEN)
        report.read()
        assert report.absent and not report.stopping


def test_a_clip_is_right_with_any_of_its_labels() -> None:
    targets = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0]])
    assert right_clips(logits(1, 3), targets) == 2 and right_clips(logits(2, 0), targets) == 0


def test_a_mixed_clip_is_right_with_the_labels_of_what_it_is_most() -> None:
    targets = torch.tensor([[0.35, 0.35, 0, 0.3], [0, 0, 0.4, 0.6]])
    assert right_clips(logits(1, 3), targets) == 2 and right_clips(logits(3, 2), targets) == 0


def test_own_seconds_leave_out_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 50.0, 51.0, 70.0, 74.0])
    monkeypatch.setattr("pretrain.training.step.time.perf_counter", lambda: next(clock))
    own = DeviceTime(torch.device("cpu"))
    for _ in range(2):
        own.begin()
        own.end(False)
        own.end()
    step = own.step()
    own.begin()
    own.end()
    assert own.step()() == 4.0 and step() == 3.0


def test_the_last_item_comes_again_where_it_is_asked_for() -> None:
    taken, items = [], Repeatable(iter(range(4)))
    for number, item in enumerate(items):
        taken.append(item)
        if number in (1, 2, 4):
            items.again()
    assert taken == [0, 1, 1, 1, 2, 2, 3]


def test_a_position_passes_samples_over() -> None:
    assert Position(step=4, passed_over=3).data_step == 7
