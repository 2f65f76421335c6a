"""A training run's settings, put together from those of its parts, and what follows from them."""

import os
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from pretrain.checkpoints.checkpoint import CheckpointChoice, CheckpointSettings
from pretrain.data.sources import DataSettings
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.losses import LossSettings
from pretrain.lr_schedule import ScheduleSettings, highest_rate, total_steps
from pretrain.models.count import activation_bytes, fewest_values, macs, parameters
from pretrain.models.meta_device import on_meta
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.resilience.early_stop import EarlyStopSettings
from pretrain.resilience.hang_watchdog import WatchdogSettings
from pretrain.resilience.liveness import LivenessSettings
from pretrain.resilience.loss_monitor import HealthSettings
from pretrain.tracking.settings import TrackingSettings
from sharding.base.errors import UserError
from sharding.base.settings import Settings, unit

PATIENCE = 7200.0  # seconds that a validation or a save may take


class ValidationSettings(Settings):
    """The validation during training: one centre clip of each video."""

    every_steps: Annotated[
        int, Field(json_schema_extra=unit("steps"), ge=1, description="optimizer steps between two validations")
    ] = 5000
    videos: Annotated[
        int,
        Field(
            json_schema_extra=unit("videos"), ge=1, description="videos of a validation at most, spread over the split"
        ),
    ] = 5000
    early_stop: Annotated[
        EarlyStopSettings | None, Field(description="ends the run once validations gain no more; null: never")
    ] = None


class InitSettings(Settings):
    """Start from another run's network: one trained here, or made of weights by `reelscale import`."""

    run: Annotated[str, Field(description="folder of the run that is taken")]
    checkpoint: CheckpointChoice = "newest"
    head: Annotated[
        Literal["auto", "keep", "new"],
        Field(
            description="the classifier: auto: kept where the classes have the same names, else new; keep: refused "
            "where they have not; new: always"
        ),
    ] = "auto"


class TrainSettings(Settings):
    """One training run, pretraining or fine-tuning."""

    run: Annotated[
        str | None, Field(description="the run's folder; null: runs/RECIPE-STORE, after the recipe's and store's names")
    ] = None
    seed: Annotated[
        int, Field(ge=0, description="seed of the weights, the order of samples and all else that is random")
    ] = 0
    lanes: Annotated[
        int, Field(ge=1, le=2**16, description="virtual ranks, which decide the numbers; a multiple of the ranks")
    ] = 8
    lane_batch: Annotated[
        int,
        Field(
            json_schema_extra=unit("clips"),
            ge=1,
            le=2**16,
            description="clips of a lane in a step (the paper's clips per GPU)",
        ),
    ] = 32
    log_steps: Annotated[
        int, Field(json_schema_extra=unit("steps"), ge=1, description="optimizer steps between two log lines")
    ] = 20
    data: Annotated[DataSettings, Field(description="stores that are read, and how clips are made of their samples")]
    model: Annotated[ModelSettings, Field(description="the network that is trained")] = ModelSettings()
    init: Annotated[InitSettings | None, Field(description="the run to start from; null: new weights")] = None
    schedule: Annotated[ScheduleSettings, Field(description="the learning rate over the run")] = ScheduleSettings()
    loss: Annotated[LossSettings, Field(description="the training loss")] = LossSettings()
    engine: Annotated[EngineSettings, Field(description="how a step is computed")] = EngineSettings()
    precise_statistics: Annotated[
        int,
        Field(
            json_schema_extra=unit("steps"),
            ge=0,
            description="steps' worth of clips from which batch normalisation's statistics are taken anew at the end, "
            "with the final weights; 0: the moving ones stay",
        ),
    ] = 0
    deterministic: Annotated[
        bool | None,
        Field(description="whether every run of these settings and ranks has the same bits; null: on a CPU only"),
    ] = None
    health: Annotated[HealthSettings, Field(description="losses that count as unsound")] = HealthSettings()
    watchdog: Annotated[WatchdogSettings, Field(description="when a run counts as hung")] = WatchdogSettings()
    pulse: Annotated[LivenessSettings, Field(description="when a rank counts as lost")] = LivenessSettings()
    validation: Annotated[ValidationSettings, Field(description="the validation during training")] = (
        ValidationSettings()
    )
    checkpoint: Annotated[CheckpointSettings, Field(description="when checkpoints are saved, and which are kept")] = (
        CheckpointSettings()
    )
    tracking: Annotated[TrackingSettings, Field(description="experiment trackers that get the run's figures")] = (
        TrackingSettings()
    )

    @model_validator(mode="after")
    def _channels_that_follow(self) -> Self:
        if "in_channels" not in self.model.model_fields_set:
            model = self.model.model_copy(update={"in_channels": self.data.clip.channels})
            object.__setattr__(self, "model", model)  # settings are frozen once they are made, which they are not yet
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.validation.early_stop and self.precise_statistics:
            raise ValueError("precise_statistics are of the planned end, and validation.early_stop may end before it")
        return self

    @property
    def batch(self) -> int:
        """The global batch: lanes times clips a lane."""
        return self.lanes * self.lane_batch

    @property
    def together(self) -> bool:
        """Whether all lanes are normalised as one batch."""
        return self.model.batch_norm == "all"

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(self.schedule, self.batch)


def what_matters(settings: TrainSettings) -> dict[str, Any]:
    """Of the settings' JSON what decides the numbers that come of a run, and not where and how they are made."""
    return settings.model_dump(
        mode="json",
        exclude={
            "run": True,
            "log_steps": True,
            "watchdog": True,
            "pulse": True,
            "checkpoint": True,
            "tracking": True,
            "data": {"loader": {"workers", "prefetch", "stall_seconds"}, "reading": True, "patience_seconds": True},
        },
    )


def is_deterministic(settings: TrainSettings, device: torch.device) -> bool:
    """Whether two runs of the settings are to give the same bits on such a device."""
    return device.type == "cpu" if settings.deterministic is None else settings.deterministic


def longest_wait(settings: TrainSettings) -> float:
    """Seconds after which a collective gives up: later than the watchdog and the heartbeats, which can say why."""
    return max(PATIENCE, settings.watchdog.stall_seconds, settings.data.patience_seconds) + 600.0


def check_ranks(lanes: int, ranks: int) -> None:
    """Raises UserError unless `ranks` divides `lanes`, naming the numbers of ranks that do."""
    if lanes % ranks:
        fitting = [str(n) for n in range(1, lanes + 1) if lanes % n == 0]
        raise UserError(
            f"{lanes} lanes do not spread over {ranks} ranks",
            "lanes, ranks",
            f"use a number of ranks that divides {lanes}: {', '.join(fitting)}",
        )


def fitting_world_size(lanes: int, ranks: int) -> int:
    """The most ranks, of `ranks` that there are, over which `lanes` lanes spread evenly."""
    return next(size for size in range(min(lanes, ranks), 0, -1) if lanes % size == 0)


def check_lane(settings: TrainSettings, classes: int) -> None:
    """Raises UserError where a layer would have a single value a channel to normalise, or a clip none to mix with."""
    if settings.loss.mixup and settings.lane_batch == 1:
        what = "mixup blends a clip with another of its lane, and a lane has one clip"
        raise UserError(what, "loss.mixup, lane_batch", "set lane_batch=2 or more, or leave loss.mixup out")
    clip = settings.data.clip
    with on_meta():
        model = build_model(settings.model, classes, clip.frames, clip.crop)
    clips = settings.lane_batch * (settings.lanes if settings.together else 1)
    if clips * fewest_values(model, clip.frames, clip.crop) == 1:
        raise UserError(
            f"the last layers make one value a channel of a clip of {clip.frames} frames of {clip.crop}² pixels, and a "
            "lane of one such clip cannot be normalised",
            "lane_batch, data.clip",
            "set lane_batch=2 or more, or a larger data.clip.crop",
        )


def state_bytes(settings: TrainSettings, parameters: int, ranks: int) -> int:
    """What a rank holds of weights, gradients, the optimizer's state and averages, in fp32, as ZeRO shares them out."""
    kinds = [(1, 3), (1, 2), (_kept(settings), 1)]  # tensors, and from which stage on a rank has its share alone
    return sum(4 * parameters * tensors // _sharing(settings, stage, ranks) for tensors, stage in kinds)


def held_bytes(settings: TrainSettings, parameters: int, ranks: int) -> int:
    """What a rank holds, at the most, beside a whole network and its gradients, as they are until ZeRO takes over.

    The optimizer's state and averages, the weights that ZeRO has of its own, a bucket in which gradients travel, and
    those that a CUDA graph computes.
    """
    own, graph = settings.engine.zero > 0, settings.engine.cuda_graph and settings.engine.zero < 3
    return 4 * parameters * (_kept(settings) + own) // _sharing(settings, 1, ranks) + 4 * parameters * (1 + graph)


def _kept(settings: TrainSettings) -> int:
    """How many numbers a weight the optimizer keeps, averages among them."""
    return (1 if settings.engine.optimizer == "sgd" else 2) + (settings.engine.average is not None)


def _sharing(settings: TrainSettings, stage: int, ranks: int) -> int:
    """How many ranks share what ZeRO spreads from a stage on."""
    return ranks if settings.engine.zero >= stage else 1


def require_memory(needed: int, device: torch.device) -> None:
    """Raises UserError where a rank on a CPU needs far more bytes than its machine has: it would be ended untold.

    A GPU's memory is measured.
    """
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cpu" and needed > 2 * has:
        raise UserError(
            f"a rank needs about {needed / 2**30:,.0f} GiB, and this machine has {has / 2**30:,.0f} GiB",
            "lane_batch, data.clip",
            "set lane_batch, data.clip.frames or data.clip.crop lower, or spread the lanes over ranks elsewhere",
        )


def derived(settings: TrainSettings, classes: int, samples: int, ranks: int) -> dict[str, Any]:
    """Quantities that follow from the settings and the store, by the names users know them by."""
    clip = settings.data.clip
    with on_meta():
        model = build_model(settings.model, classes, clip.frames, clip.crop)
    count = parameters(model)
    at_once = settings.lane_batch * (settings.lanes // ranks if settings.together else 1)
    recomputed = 0 if settings.engine.recomputed == "auto" else settings.engine.recomputed
    per_clip = activation_bytes(model, clip.frames, clip.crop, settings.engine.half, recomputed)
    return {
        "ranks": ranks,
        "lanes": settings.lanes,
        "global_batch": settings.batch,
        "steps": settings.steps,
        "steps_per_epoch": settings.schedule.epoch_clips / settings.batch,
        "epochs": settings.schedule.epochs,
        "training_samples": samples,
        "passes": settings.steps * settings.batch / samples,
        "classes": classes,
        "parameters": count,
        "gmacs_per_clip": macs(model, clip.frames, clip.crop, clip.crop) / 1e9,
        "peak_learning_rate": highest_rate(settings.schedule, settings.lanes, settings.batch),
        "memory_per_rank_bytes": state_bytes(settings, count, ranks) + per_clip * at_once,
    }
