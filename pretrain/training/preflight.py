"""Preflight: all that can be refused before a rank starts, checked once for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.reading.computed_flow import is_flow_computed
from pretrain.data.reading.store_split import Split
from pretrain.data.sources import open_sources, order_of
from pretrain.models.groups import freeze
from pretrain.models.zoo import build_model
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings, check_lane, check_ranks, derived
from pretrain.tracking.trackers import require_packages
from pretrain.training.initial_network import start_from
from sharding.base.errors import UserError


class ResolvedRun(pydantic.BaseModel):
    """A run that may start: its settings, and what followed from them and from its stores. Its JSON is all of it.

    `index`: the version of each store's index that the run reads. `derived`: quantities by the names that users know.
    `recipe`: the name of the file that the settings came from, "" where there is none. `expected`: of it, as it says.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    settings: TrainSettings
    index: list[str]
    derived: dict[str, Any]
    recipe: str = ""
    expected: str = ""


def preflight(settings: TrainSettings, ranks: int, recipe: str = "", expected: str = "") -> ResolvedRun:
    """The run, once everything is checked that can be before it starts; ranks check nothing of it again.

    Raises UserError for an unreachable or empty store, lanes that do not fit the ranks or are too small to
    normalise, a run to start from that is none or another network, a folder that holds another run.
    """
    check_ranks(settings.lanes, ranks)
    require_packages(settings.tracking)
    run = Run(Path(settings.run), writes=False) if settings.run else None
    sources = open_sources(settings.data, run.versions(settings.data) if run else None)
    classes = sources.classes
    order_of(sources, settings.data, settings.seed, settings.lanes, settings.lane_batch)
    clip = settings.data.clip
    if settings.model.in_channels != clip.channels:
        what = f"clips of input {clip.input} have {clip.channels} channels, the network {settings.model.in_channels}"
        remedy = f"leave model.in_channels out: it follows data.clip.input={clip.input}; or set another input"
        if settings.model.name == "fused3d":
            remedy = "set data.clip.input=rgb+flow: it takes both"
        raise UserError(what, "model.in_channels", remedy)
    check_lane(settings, len(classes))
    quantities = derived(settings, len(classes), sources.samples, ranks)
    if clip.input != "rgb":
        splits = [*sources.splits, *([sources.unseen] if len(sources.unseen) else [])]
        quantities["optical_flow"] = next(filter(None, map(_computed_flow, splits)), "stored")
    if run:
        run.require_same(settings, classes, sources.versions)
    model = build_model(settings.model, len(classes), clip.frames, clip.crop)
    freeze(model, settings.schedule.rates)
    if settings.init and not (run and Checkpointer(run.folder, settings.checkpoint).has_any()):
        start_from(model, settings, Path(settings.init.run), classes)
    return ResolvedRun(settings=settings, index=sources.versions, derived=quantities, recipe=recipe, expected=expected)


def _computed_flow(split: Split) -> str:
    """How large are the pictures that a split's optical flow is computed of; "" where it is stored."""
    if not is_flow_computed(split):
        return ""
    sample = split.sample(0)
    return f"computed as clips are decoded, of {sample.width} × {sample.height} pixels as stored"
