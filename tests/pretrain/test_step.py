"""A step's figures: summed over passes and ranks, and the word to stop; a rank's own seconds."""

from __future__ import annotations

import pytest
import torch

from pretrain.engine.world import World
from pretrain.step import OwnTime, Position, StepReport, right_clips

ALONE = World(0, 1, torch.device("cpu"))


class Two(World):
    """As if another rank had summed the same figures, and was asked to stop."""

    def sum_(self, tensor: torch.Tensor) -> None:
        tensor *= 2
        tensor[-1] += 1


def logits(*tops: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tops), 4).float()


def test_passes_are_summed() -> None:
    report = StepReport(7, 700, 0.1)
    report.add(torch.eye(4)[:2], logits(0, 2), torch.tensor(1.5))
    report.add(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), logits(2), torch.tensor(3.0, dtype=torch.bfloat16))
    assert not report.agree(ALONE, stop=False)
    assert (report.clips, report.right, report.loss, report.mean_loss) == (3, 2, 6.0, 2.0)


@pytest.mark.parametrize("stop", [True, False])
def test_one_rank_that_is_to_stop_stops_all(stop: bool) -> None:
    report = StepReport(1, 4, 0.1)
    report.add(torch.eye(4), logits(0, 1, 2, 0), torch.tensor(2.0))
    assert report.agree(Two(0, 2, torch.device("cpu")), stop)
    assert (report.clips, report.right, report.mean_loss) == (8, 6, 2.0)


def test_a_clip_is_right_with_any_of_its_labels() -> None:
    targets = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0]])
    assert right_clips(logits(1, 3), targets) == 2 and right_clips(logits(2, 0), targets) == 0


def test_a_mixed_clip_is_right_with_the_labels_of_what_it_is_most() -> None:
    targets = torch.tensor([[0.35, 0.35, 0, 0.3], [0, 0, 0.4, 0.6]])
    assert right_clips(logits(1, 3), targets) == 2 and right_clips(logits(3, 2), targets) == 0


def test_own_seconds_leave_out_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 50.0, 51.0, 70.0, 74.0])
    monkeypatch.setattr("pretrain.step.time.perf_counter", lambda: next(clock))
    own = OwnTime(torch.device("cpu"))
    for _ in range(2):
        own.begin()
        own.end(False)
        own.end()
    assert own.take() == 3.0
    own.begin()
    own.end()
    assert own.take() == 4.0


def test_a_position_passes_samples_over() -> None:
    assert Position(step=4, passed_over=3).data_step == 7
