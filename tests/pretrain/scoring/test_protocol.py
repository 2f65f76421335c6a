"""Protocols by hand: their names, and what logits of crops, clips and places come to."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.scoring.protocol import Averaged, Pooling, Protocol, average_views


@pytest.mark.parametrize(
    ("protocol", "name", "overrides"),
    [
        (Protocol(10, 1, 112, 112), "10-clips", "clips=10"),
        (Protocol(1, 3, 112, 112), "1-clips-3-crops", "clips=1 crops=3"),
        (Protocol(10, 3, 128, 112), "10-clips-3-crops-crop-128", "clips=10 crops=3 crop=128"),
        (
            Protocol(10, 1, 128, 112, "average", "logits"),
            "10-clips-crop-128-pooled-logits",
            "clips=10 crop=128 pooling=average average=logits",
        ),
        (Protocol(10, 1, 112, 112, "average"), "10-clips", "clips=10"),
    ],
)
def test_each_protocol_of_a_network_has_a_name(protocol: Protocol, name: str, overrides: str) -> None:
    assert (protocol.name, protocol.overrides) == (name, overrides)


def test_names_differ_where_scores_may() -> None:
    poolings: list[Pooling] = ["convolutional", "average"]
    averages: list[Averaged] = ["scores", "logits"]
    protocols = [
        Protocol(clips, crops, crop, 112, pooling, average)
        for clips in (1, 11)
        for crops in (1, 3)
        for crop in (112, 128)
        for pooling in poolings
        for average in averages
    ]
    # Of the trained crop both ways of pooling are one.
    assert len({protocol.name for protocol in protocols}) == 2 * 2 * 3 * 2
    assert len({str(protocol.identity) for protocol in protocols}) == len(protocols)


def test_a_protocol_in_words() -> None:
    assert Protocol(1, 1, 112, 112).words == "1 clip x the centre crop of 112 pixels; mean of softmaxes"
    assert Protocol(10, 3, 128, 112, average="logits").words == (
        "10 clips x 3 crops of 128 pixels, fully convolutional; mean of logits"
    )
    assert "all of it pooled" in Protocol(10, 3, 128, 112, "average").words


def logit(share: float) -> list[float]:
    """Logits of two classes whose softmax is (share, 1 - share)."""
    return [math.log(share), math.log(1 - share)]


def test_softmaxes_are_averaged_over_all_views() -> None:
    """Two crops' ends and the centre, two clips, one place: 0.9 twice as sure as twice 0.4 is not."""
    shares = torch.tensor([[0.9, 0.4], [0.6, 0.4], [0.9, 0.4]], dtype=torch.float64)  # crops clips
    logits = torch.stack([shares.log(), (1 - shares).log()], -1).unsqueeze(2)
    mean = average_views(logits, "scores")
    assert mean.scores[0].item() == pytest.approx((0.9 + 0.4 + 0.6 + 0.4 + 0.9 + 0.4) / 6)
    assert mean.logits[0].item() == pytest.approx(shares.log().mean().item())
    # A clip is scored by its centre crop.
    assert mean.clip_scores[:, 0].tolist() == pytest.approx([0.6, 0.4])


def test_means_of_scores_and_of_logits_decide_differently() -> None:
    """One very sure view outweighs two others by its logits, and not by its score."""
    logits = torch.tensor([[logit(0.999)], [logit(0.2)], [logit(0.2)]], dtype=torch.float64).view(1, 3, 1, 2)
    by_scores, by_logits = average_views(logits, "scores"), average_views(logits, "logits")
    assert by_scores.scores[0].item() == pytest.approx((0.999 + 0.2 + 0.2) / 3)
    odds = (0.999 / 0.001 * (0.2 / 0.8) ** 2) ** (1 / 3)
    assert by_logits.scores[0].item() == pytest.approx(odds / (1 + odds))
    assert by_scores.scores.argmax() == 1 and by_logits.scores.argmax() == 0
    assert by_scores.logits.tolist() == by_logits.logits.tolist()


def test_places_are_averaged_within_a_clip() -> None:
    logits = torch.tensor([logit(0.9), logit(0.1), logit(0.2), logit(0.2)], dtype=torch.float64).view(1, 1, 4, 2)
    assert average_views(logits, "scores").clip_scores[0, 0].item() == pytest.approx(0.35)
    odds = (9 * (1 / 9) * 0.25 * 0.25) ** 0.25
    assert average_views(logits, "logits").clip_scores[0, 0].item() == pytest.approx(odds / (1 + odds))
