"""What training makes small: losses for one label a clip and for several, label smoothing, mixup: pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pretrain.data.sampling.order import mix
from sharding.base.settings import Settings

_MIXUP = 0x6D6978  # tells mixup's draws from others of the same lane


class LossSettings(Settings):
    """The training loss; validation always has plain softmax cross entropy."""

    kind: Annotated[
        Literal["softmax", "sigmoid"],
        Field(
            description="softmax: classes exclude each other, several labels share their weight; "
            "sigmoid: each class is decided by itself"
        ),
    ] = "softmax"
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share from 0 to 1 of a target that is spread over all classes")
    ] = 0.0
    mixup: Annotated[
        float, Field(ge=0, le=32, description="alpha of mixup, which blends each clip with another; 0: no mixup")
    ] = 0.0


def loss(settings: LossSettings, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over clips of the loss of logits [N, K], fp32, with targets [N, K] whose rows sum to 1.

    softmax: cross entropy with the rows as they are (1/k for each of k labels, as Mahajan et al. 2018 train on
    hashtags), smoothed as torch does. sigmoid: binary cross entropy, summed over the classes so that the gradient of a
    logit is sigmoid - target where softmax's is softmax - target; all of a row's labels count in full, those of both
    clips where they were mixed (Wightman et al. 2021), smoothed to 1 - s + s/K and s/K (as timm does).
    """
    if settings.kind == "softmax":
        return F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
    present = (targets > 0).to(logits.dtype)
    smoothed = torch.lerp(present, torch.full_like(present, 1 / present.shape[1]), settings.label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, smoothed, reduction="sum") / len(logits)


def mixed(settings: LossSettings, video: Tensor, targets: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018): each clip, and its target, blended with the one before it in its lane.

    video [N, …] is changed in place and returned; targets [N, K] stay, mixed ones are returned. `seeds` has a number
    for each lane of the batch, which share it evenly, in order: a lane's share is drawn from it once, so the same
    lane is mixed alike wherever, and with whatever else, it is computed. Lanes of one clip stay as they are.
    """
    if not settings.mixup:
        return video, targets
    blended = []
    for seed, clips, rows in zip(seeds, video.chunk(len(seeds)), targets.chunk(len(seeds)), strict=True):
        theirs = partner_share(settings.mixup, seed)
        _blend_with_the_one_before(clips, theirs)
        blended.append(torch.lerp(rows, rows.roll(1, 0), theirs))
    return video, torch.cat(blended)


def partner_share(alpha: float, seed: int) -> float:
    """1 - λ, with λ ~ Beta(alpha, alpha): how much of a blended clip is its partner's."""
    return random.Random(int(mix(seed, _MIXUP)[0])).betavariate(alpha, alpha)


def _blend_with_the_one_before(clips: Tensor, share: float) -> None:
    """In place, from the last clip to the first, whose own partner is kept aside: one clip of memory more."""
    last = clips[-1].clone()
    for place in range(len(clips) - 1, 0, -1):
        clips[place].lerp_(clips[place - 1], share)
    clips[0].lerp_(last, share)
