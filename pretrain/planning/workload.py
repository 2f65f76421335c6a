"""What a run asks of a cluster, from its recipe and its store's index: clips, arithmetic, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pretrain.data.views.frames import needed_frames
from pretrain.models.count import macs, parameters
from pretrain.models.meta_device import on_meta
from pretrain.models.zoo import build_model
from pretrain.planning.figure import Figure, number
from pretrain.planning.reading import PART_RANGE, clip_bytes
from pretrain.planning.settings import PlanSettings, label
from pretrain.settings import TrainSettings, state_bytes
from sharding.base.errors import UserError
from sharding.format.index import Index


class _DataSet(NamedTuple):
    """Published of a data set: videos to train on, classes, seconds of a video, and where it says so."""

    videos: int
    classes: int
    seconds: float
    where: str


_PUBLISHED = {  # by a word of the recipe's or the store's name
    "sports1m": _DataSet(1_133_158, 487, 300, "Sports-1M, validation included, videos of 5 minutes"),
    "kinetics400": _DataSet(246_245, 400, 10, "Kinetics-400, Kay et al. 2017"),
    "ucf101": _DataSet(9_537, 101, 7.2, "UCF101, split 1"),
    "hmdb51": _DataSet(3_570, 51, 3.1, "HMDB51, split 1"),
}
_ANY_SECONDS = 10.0


@dataclass(frozen=True)
class StoreFacts:
    """A store's training split: what its index says, or what is assumed of one that is not there."""

    samples: int
    classes: int
    frames: float  # a sample
    bytes_per_frame: float
    shards: int
    shard_bytes: float
    figures: tuple[Figure, ...] = ()

    @property
    def total_bytes(self) -> float:
        """Bytes of the split."""
        return self.samples * self.frames * self.bytes_per_frame


@dataclass(frozen=True)
class Workload:
    """A run's demands. Sizes are in bytes; `macs` of one clip's forward pass; `span`: stored frames of a clip."""

    steps: int
    lanes: int
    lane_batch: int
    macs: float
    parameters: int
    gradient_bytes: int
    checkpoint_bytes: int
    zero: int
    half: bool
    span: int
    clip_bytes: float
    clip_requests: float
    whole_parts: bool
    checkpoint_every: int
    validation_every: int
    validation_clips: int
    workers: int | None
    lost_seconds: float
    block_bytes: int
    store: StoreFacts

    @property
    def batch(self) -> int:
        """Clips of a step."""
        return self.lanes * self.lane_batch

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, in fp32."""
        return 4 * self.parameters


def store_facts(index: Index | None, plan: PlanSettings, names: str) -> StoreFacts:
    """The training split of an index; without one, of the data set that `names` speak of, and of the plan's settings.

    Raises UserError where neither says how many videos there are.
    """
    if index is not None:
        return _indexed(index)
    plain = names.lower().replace("-", "").replace("_", "")
    published = next((data_set for word, data_set in _PUBLISHED.items() if word in plain), None)
    if published is None and (plan.videos is None or plan.classes is None):
        raise UserError(
            "the store is not there yet, and nothing says how many videos and classes it will have",
            "plan.videos, plan.classes",
            "set plan.videos=N plan.classes=N, or name a store that is there: data.store=STORE",
        )
    by_name = published or _DataSet(0, 0, _ANY_SECONDS, "")
    videos, classes = plan.videos or by_name.videos, plan.classes or by_name.classes
    seconds = plan.sample_seconds or by_name.seconds
    samples, frames = max(1, round(videos * plan.segments_per_video)), seconds * plan.frames_per_second
    total = samples * frames * plan.bytes_per_frame
    shards = max(1, round(total / plan.shard_bytes))
    where = f"published: {by_name.where}" if published else "assumed"
    figures = [
        Figure(label(name), value, unit, "", f"setting plan.{name}" if getattr(plan, name) else where)
        for name, value, unit in (
            ("videos", videos, ""), ("classes", classes, ""), ("sample_seconds", seconds, "seconds")
        )
    ]  # fmt: skip
    rest = ("segments_per_video", "frames_per_second", "bytes_per_frame", "shard_bytes")
    figures += [_setting(plan, name) for name in rest]
    return StoreFacts(samples, classes, frames, plan.bytes_per_frame, shards, total / shards, tuple(figures))


def _indexed(index: Index) -> StoreFacts:
    split = index.splits["train"]
    source = f"measured: the store's index, {index.version}"
    figures = (
        Figure("samples", split.samples, "", "", source),
        Figure("classes", len(index.classes), "", "", source),
        Figure("frames of all", split.frames, "frames", "", source),
        Figure("bytes of all", split.bytes, "bytes", "", source),
        Figure("shards", split.shards, "tars", "", source),
    )
    per_frame = split.bytes / max(1, split.frames)
    frames = split.frames / max(1, split.samples)
    shards = max(1, split.shards)
    return StoreFacts(split.samples, len(index.classes), frames, per_frame, shards, split.bytes / shards, figures)


def source_of(plan: PlanSettings, name: str) -> str:
    """Where a setting of a plan comes from: the user, or what its default is."""
    if name in plan.model_fields_set:
        return f"setting plan.{name}"
    extra = type(plan).model_fields[name].json_schema_extra
    return str(extra["source"]) if isinstance(extra, dict) else ""


def _setting(plan: PlanSettings, name: str) -> Figure:
    extra = type(plan).model_fields[name].json_schema_extra
    unit = str(extra["unit"]) if isinstance(extra, dict) else ""
    return Figure(label(name), getattr(plan, name), unit, "", source_of(plan, name))


def workload_of(settings: TrainSettings, store: StoreFacts, lanes: int) -> Workload:
    """What a recipe asks for on so many lanes, of a store with such a split."""
    clip, engine = settings.data.clip, settings.engine
    with on_meta():
        model = build_model(settings.model, store.classes, clip.frames, clip.crop)
    count = parameters(model)
    span = needed_frames(clip.frames, clip.stride)
    whole = _whole_parts(settings, store)
    sample_bytes = store.frames * store.bytes_per_frame
    resized = settings.model_copy(update={"lanes": lanes})
    return Workload(
        steps=resized.steps,
        lanes=lanes,
        lane_batch=settings.lane_batch,
        macs=macs(model, clip.frames, clip.crop, clip.crop),
        parameters=count,
        gradient_bytes=count * (2 if engine.gradients == "bf16" else 4),
        checkpoint_bytes=state_bytes(settings, count, 1) - 4 * count,  # all but the gradients
        zero=engine.zero,
        half=engine.half,
        span=span,
        clip_bytes=sample_bytes if whole else clip_bytes(span, store.bytes_per_frame, store.frames),
        clip_requests=sample_bytes / PART_RANGE if whole else 1.0,
        whole_parts=whole,
        checkpoint_every=settings.checkpoint.every_steps,
        validation_every=settings.validation.every_steps,
        validation_clips=settings.validation.videos,
        workers=settings.data.loader.workers,
        lost_seconds=settings.pulse.lost_seconds,
        block_bytes=settings.data.order.block_bytes,
        store=store,
    )


def _whole_parts(settings: TrainSettings, store: StoreFacts) -> bool:
    """Whether a run reads whole parts: told to, or with a cache that holds all of them."""
    reading = settings.data.reading
    if reading.mode == "auto":
        return reading.folder is not None and store.total_bytes <= reading.bytes
    return reading.mode == "parts"


def lanes_for(settings: TrainSettings, ranks: int) -> tuple[int, str]:
    """Lanes that share evenly over the ranks, the recipe's or the next number that does; and a note where it is that.

    More lanes are a larger batch, and by the schedule fewer steps at a higher rate.
    """
    if settings.lanes % ranks == 0:
        return settings.lanes, ""
    lanes = -(-settings.lanes // ranks) * ranks
    batch = number(lanes * settings.lane_batch)
    return lanes, (
        f"the recipe's {settings.lanes} lanes do not spread over {ranks} GPUs: planned with lanes={lanes}, a batch of "
        f"{batch} clips and a peak rate of {settings.schedule.lr:g} × {lanes} = {settings.schedule.lr * lanes:g}; "
        f"give lanes={lanes} to the run, too"
    )
