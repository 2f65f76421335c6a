"""Which experiment trackers get a run's figures beside its own files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sharding.base.settings import Settings


class WandbSettings(Settings):
    """Weights & Biases (`pip install 'reelscale[wandb]'`). The key is `WANDB_API_KEY`'s, or `wandb login`'s."""

    project: Annotated[str, Field(min_length=1, max_length=128, description="project that the run belongs to")]
    entity: Annotated[str | None, Field(description="user or team; null: the key's own")] = None
    name: Annotated[str | None, Field(description="the run's name; null: that of its folder")] = None
    tags: Annotated[tuple[str, ...], Field(max_length=64, description="tags of the run")] = ()
    mode: Annotated[
        Literal["online", "offline"],
        Field(description="offline: kept in the run's folder `wandb`, for `wandb sync`; on that node's disk alone"),
    ] = "online"


class TrackingSettings(Settings):
    """Experiment trackers that get what `metrics.jsonl` gets. None of them can hold up a run, nor end one."""

    tensorboard: Annotated[
        bool,
        Field(
            description="whether the run's folder gets TensorBoard's files, in `tensorboard` "
            "(`pip install 'reelscale[tensorboard]'`; `tensorboard --logdir runs` shows all runs)"
        ),
    ] = False
    wandb: Annotated[WandbSettings | None, Field(description="Weights & Biases; null: not there")] = None

    @property
    def wanted(self) -> list[str]:
        """The trackers that are asked for, by the names of their packages."""
        return ["tensorboard"] * self.tensorboard + ["wandb"] * (self.wandb is not None)
