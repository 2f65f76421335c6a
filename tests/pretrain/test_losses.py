"""Losses against torch's own, and mixup: what it blends, how much, and that lanes keep to themselves."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from pretrain.losses import LossSettings, loss, mixed, partner_share


def batch(clips: int, classes: int, labels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets [clips, classes]; `labels` labels a clip, of equal weight."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.zeros(clips, classes)
    for row in targets:
        row[torch.randperm(classes, generator=draw)[:labels]] = 1 / labels
    return 3 * torch.randn(clips, classes, generator=draw), targets


@given(st.integers(1, 5), st.integers(2, 9), st.sampled_from([0.0, 0.1, 0.9]))
def test_softmax_of_one_label_is_torchs_cross_entropy(clips: int, classes: int, smoothing: float) -> None:
    logits, targets = batch(clips, classes, 1)
    expected = F.cross_entropy(logits, targets.argmax(1), label_smoothing=smoothing)
    assert_close(loss(LossSettings(label_smoothing=smoothing), logits, targets), expected)


@given(st.integers(1, 4), st.sampled_from([0.0, 0.2]))
def test_several_labels_share_a_softmax(labels: int, smoothing: float) -> None:
    logits, targets = batch(6, 5, labels)
    wanted = (1 - smoothing) * targets.double() + smoothing / 5
    expected = -(wanted * logits.double().log_softmax(1)).sum(1).mean()
    assert_close(
        loss(LossSettings(label_smoothing=smoothing), logits, targets).double(), expected, rtol=1e-5, atol=1e-6
    )


@given(st.integers(1, 4), st.sampled_from([0.0, 0.1]))
def test_sigmoid_asks_each_class_on_its_own(labels: int, smoothing: float) -> None:
    logits, targets = batch(6, 5, labels)
    wanted = torch.where(targets > 0, 1 - smoothing + smoothing / 5, smoothing / 5)
    result = loss(LossSettings(kind="sigmoid", label_smoothing=smoothing), logits, targets)
    assert_close(result, 5 * F.binary_cross_entropy_with_logits(logits, wanted))
    by_hand = -(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log()).sum(1).mean()
    assert_close(result, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "function"), [("softmax", lambda x: x.softmax(1)), ("sigmoid", torch.sigmoid)])
def test_a_logits_gradient_is_what_was_said_less_what_is_true(kind: str, function: object) -> None:
    logits, targets = batch(3, 4, 1)
    logits.requires_grad_()
    loss(LossSettings(kind=kind), logits, targets).backward()
    assert_close(logits.grad, (function(logits.detach()) - targets) / 3)


def test_logits_far_out_stay_finite() -> None:
    targets = torch.tensor([[1.0, 0.0]])
    for kind in ("softmax", "sigmoid"):
        logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
        value = loss(LossSettings(kind=kind), logits, targets)
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()


def test_without_mixup_the_batch_is_the_very_same() -> None:
    video, targets = torch.randn(4, 3, 2, 2, 2), torch.eye(4)
    before = video.clone()
    found = mixed(LossSettings(), video, targets, [1])
    assert found[0] is video and found[1] is targets and torch.equal(video, before)


@given(st.integers(2, 7), st.floats(0.01, 4), st.integers(0, 2**63 - 1))
def test_every_clip_is_blended_with_the_one_before(clips: int, alpha: float, seed: int) -> None:
    video, targets = torch.randn(clips, 3, 2, 4, 4), batch(clips, 5, 2)[1]
    share = partner_share(alpha, seed)
    assert 0 <= share <= 1
    before, kept = video.clone(), targets.clone()
    found, rows = mixed(LossSettings(mixup=alpha), video, targets, [seed])
    assert found is video and torch.equal(targets, kept)
    assert_close(video, (1 - share) * before + share * before.roll(1, 0))
    assert_close(rows, (1 - share) * kept + share * kept.roll(1, 0))
    assert_close(rows.sum(1), torch.ones(clips))


@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_lanes_computed_at_once_are_mixed_as_each_alone(lane_batch: int, classes: int, seeds: list[int]) -> None:
    settings = LossSettings(mixup=0.4)
    video, targets = torch.randn(lane_batch * len(seeds), 3, 2, 4, 4), batch(lane_batch * len(seeds), classes, 1)[1]
    pieces = zip(video.clone().chunk(len(seeds)), targets.chunk(len(seeds)), seeds, strict=True)
    alone = [mixed(settings, clips, rows, [seed]) for clips, rows, seed in pieces]
    together = mixed(settings, video, targets, seeds)
    assert torch.equal(together[0], torch.cat([clips for clips, _ in alone]))
    assert torch.equal(together[1], torch.cat([rows for _, rows in alone]))


def test_a_lane_of_one_clip_has_nothing_to_be_mixed_with() -> None:
    video, targets = torch.randn(1, 3, 2, 2, 2), torch.eye(3)[:1]
    before = video.clone()
    found, rows = mixed(LossSettings(mixup=1.0), video, targets, [5])
    assert torch.equal(found, before) and torch.equal(rows, targets)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 8.0])
def test_shares_are_betas(alpha: float) -> None:
    shares = [partner_share(alpha, seed) for seed in range(4000)]
    variance = 1 / (4 * (2 * alpha + 1))
    assert statistics.mean(shares) == pytest.approx(0.5, abs=4 * math.sqrt(variance / 4000))
    assert statistics.pvariance(shares) == pytest.approx(variance, rel=0.1)
    assert len(set(shares)) > 3000


def test_a_share_is_the_seeds_alone() -> None:
    """Written down, so that a run goes on as it began under later versions, too."""
    found = [partner_share(0.4, seed) for seed in (0, 1, 2**63 - 1)]
    assert found == pytest.approx([0.8898658637856475, 0.8571639337542541, 0.9577152489229049], rel=1e-12)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"kind": "hinge"}, {"label_smoothing": 1.0}, {"mixup": -0.1}, {"mixup": float("nan")}):
        with pytest.raises(ValidationError):
            LossSettings.model_validate(wrong)
