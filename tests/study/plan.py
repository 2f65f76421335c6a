"""What the study trains: networks, seeds, clip lengths and numbers of videos. Nothing here starts anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from pretrain.models.convolutions import FORMS
from pretrain.models.count import macs, parameters
from pretrain.models.zoo import ModelSettings, build_model

Part = Literal["forms", "length", "transfer"]

DEPTH, WIDTH, FRAMES, CROP, CLASSES = 10, 0.25, 8, 32, 8
REFERENCE = "r2plus1d"
LENGTHS = (4, FRAMES, 16)
VIDEOS_A_CLASS = (1, 5, 20)


@dataclass(frozen=True)
class Trial:
    """One run: its folder's name, the command that makes it, its recipe, and what it has instead of the recipe's.

    `videos`: of each class that it is fine-tuned on. `after`: the name of the trial that it starts from.
    """

    name: str
    part: Part
    network: str
    seed: int
    frames: int = FRAMES
    store: str = "motion"
    videos: int | None = None
    after: str | None = None

    @property
    def command(self) -> str:
        """The command that trains."""
        return "finetune" if self.after else "pretrain"

    @property
    def recipe(self) -> str:
        """The recipe's file."""
        return "finetune.yaml" if self.part == "transfer" else "pretrain.yaml"

    def overrides(self, root: str, quick: bool = False) -> list[str]:
        """The settings that the command gets after its recipe. `root`: the study's folder."""
        chosen = [
            f"run={root}/runs/{self.name}",
            f"data.store={root}/store/{self.store}",
            f"seed={self.seed}",
            f"model.name={self.network}",
            f"model.width={matched_width(self.network, self.frames)}",
            f"data.clip.frames={self.frames}",
        ]
        if self.after:
            chosen.append(f"init.run={root}/runs/{self.after}")
        return chosen + (["schedule.epoch_clips=32", "schedule.epochs=2", "validation.every_steps=4"] if quick else [])


def trials(seeds: int, networks: tuple[str, ...] = tuple(FORMS)) -> list[Trial]:
    """All trials; one that starts from another is behind it."""
    plan = [
        Trial(f"{network}-{seed}", "forms", network, seed)
        for seed in range(seeds)
        for network in (REFERENCE, *(each for each in networks if each != REFERENCE))
    ]
    plan += [
        Trial(f"{REFERENCE}-{frames}-frames-{seed}", "length", REFERENCE, seed, frames)
        for frames in LENGTHS
        if frames != FRAMES
        for seed in range(seeds)
    ]
    for videos in VIDEOS_A_CLASS:
        for seed in range(seeds):
            few = {"network": REFERENCE, "seed": seed, "store": f"motion2-{videos}", "videos": videos}
            plan.append(Trial(f"scratch-{videos}-{seed}", "transfer", **few))  # type: ignore[arg-type]
            plan.append(Trial(f"tuned-{videos}-{seed}", "transfer", after=f"{REFERENCE}-{seed}", **few))  # type: ignore[arg-type]
    return plan


@lru_cache
def matched_width(network: str, frames: int) -> float:
    """The width with which a network has about as many parameters as the reference at `WIDTH`."""
    wanted = size_of(REFERENCE, WIDTH, frames)[0]
    widths = [channels / 64 for channels in range(4, 65)]
    return min(widths, key=lambda width: abs(size_of(network, width, frames)[0] - wanted))


@lru_cache
def size_of(network: str, width: float, frames: int) -> tuple[int, int]:
    """Parameters of a network of the study, and its multiply-accumulates for a clip."""
    settings = ModelSettings.model_validate({"name": network, "depth": DEPTH, "width": width})
    with torch.device("meta"):
        model = build_model(settings, CLASSES, frames, CROP)
    return parameters(model), macs(model, frames, CROP, CROP)
