"""A training run from top to bottom: settings and a store in, checkpoints, metrics and a trained network out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from pretrain.checkpoint import begin_attempt, load_newest, load_run
from pretrain.data.loader import Clips, Loader
from pretrain.data.order import mix
from pretrain.data.sources import described, open_sources, order_of
from pretrain.data.transforms import network_input
from pretrain.data.views import Normalisation
from pretrain.engine.engine import Engine
from pretrain.engine.path import run_path
from pretrain.engine.world import World, leave_world, start_world
from pretrain.hooks import CheckpointHook, Hook, LogHook, StepReport, ValidationHook
from pretrain.models.network import VideoNetwork, seed_dropout
from pretrain.models.paths import PATHS
from pretrain.models.paths import Path as ComputePath
from pretrain.models.weights import load_weights
from pretrain.models.zoo import build_model
from pretrain.run import Run, read_settings
from pretrain.schedule import learning_rate
from pretrain.settings import TrainSettings, check_lane, check_ranks, derived
from pretrain.stop import Stop
from sharding.errors import UserError

log = logging.getLogger("reelscale")

Outcome = Literal["finished", "stopped"]


def train(
    settings: TrainSettings, extra_hooks: Sequence[Hook] = (), on_start: Callable[[int], None] | None = None
) -> Outcome:
    """Train on this rank until the schedule ends ("finished") or all ranks agree to stop ("stopped", all saved).

    Called by every rank; joins their process group. Goes on from the newest checkpoint in the run's folder.
    `on_start(rank)` is called once the run's log is open.
    Raises UserError for what a user can mend.
    """
    world = start_world()
    check_ranks(settings.lanes, world.size)
    folder = Path(settings.run or "run")
    stop = Stop(world, folder)
    run = Run(folder, writes=world.rank == 0)
    sources = open_sources(settings.data, run.versions(settings.data))
    classes = sources.classes
    run.begin(settings, classes, sources.versions, derived(settings, len(classes), sources.samples, world.size))
    run.log_to_file()
    if on_start:
        on_start(world.rank)
    attempt = world.broadcast(begin_attempt(folder) if world.rank == 0 else 0)

    torch.manual_seed(settings.seed)
    model = build_model(settings.model, len(classes), settings.data.clip.frames, settings.data.clip.crop)
    checkpoint = load_newest(folder)
    if checkpoint:
        load_weights(model, checkpoint.model, "keep", str(folder))
    elif settings.init:
        start_from(model, settings, Path(settings.init.run), classes)
    model.to(world.device).use(path_of(settings, folder, model, world))
    together = settings.model.batch_norm == "all"
    engine = Engine(model, settings.engine, world, settings.lanes, settings.lane_batch, together)
    if checkpoint:
        engine.load_momentum(checkpoint.optimizer)
        log.info("going on from the checkpoint at step %d of %d in %s", checkpoint.step, settings.steps, folder)
    first = checkpoint.step if checkpoint else 0

    order = order_of(sources, settings.data, settings.seed, settings.lanes, settings.lane_batch)
    for line in described(order, sources):
        log.info("%s", line)
    lanes = lanes_of(world, settings.lanes)
    data = settings.data
    loader = Loader(
        sources, order, data.clip, data.loader, lanes, world.device, last=settings.steps, reading=data.reading
    )
    loader.step = first
    validation = validation_of(settings, engine, world, run, loader)
    saving = CheckpointHook(settings, engine, world, run, attempt)
    hooks: list[Hook] = [LogHook(settings, engine, world, run, loader), *validation, saving, *extra_hooks]

    outcome: Outcome = "finished"
    video: torch.Tensor | None = None  # the same memory for every pass
    for step, batches in enumerate(loader, start=first):
        report = StepReport(step + 1, (step + 1) * settings.batch, rate := rate_at(settings, step))
        engine.set_learning_rate(rate)
        for seeds, clips in passes([int(mix(settings.seed, step, lane)[0] >> 1) for lane in lanes], batches, together):
            seed_dropout(model, seeds, world.device)
            video = network_input(clips.planes, data.clip, out=video)
            logits = engine.forward(video)  # N classes
            loss = F.cross_entropy(logits, clips.targets)
            engine.backward(loss)
            engine.step()
            report.add(clips, logits, loss)
        stopping = stop.agreed()
        for hook in hooks:
            hook.after_step(report, last=stopping or step + 1 == settings.steps)
        if stopping and step + 1 < settings.steps:
            log.info("stopped at step %d with everything saved; the same command goes on from here", step + 1)
            outcome = "stopped"
            break
    loader.close()
    stop.clear()
    world.barrier()
    leave_world()
    return outcome


def validation_of(settings: TrainSettings, engine: Engine, world: World, run: Run, loader: Loader) -> list[Hook]:
    """The look at unseen videos, where the store has any."""
    if loader.videos_unseen:
        return [ValidationHook(settings, engine, world, run, loader)]
    log.info("no validation: the store has no good video in its split 'val'")
    return []


def passes(seeds: list[int], batches: list[Clips], together: bool) -> Iterator[tuple[list[int], Clips]]:
    """(seeds, clips) of each pass of a step: a lane at a time, or all lanes at once."""
    if together:
        yield seeds, Clips.together(batches)
        return
    for seed, clips in zip(seeds, batches, strict=True):
        yield [seed], clips


def path_of(settings: TrainSettings, folder: Path, model: VideoNetwork, world: World) -> ComputePath:
    """The path the run computes by: the one asked for, or the fastest here."""
    recomputed = None if settings.engine.recomputed == "auto" else settings.engine.recomputed
    if settings.engine.path != "auto":
        return replace(PATHS[settings.engine.path], recomputed=recomputed or 0)
    clip = settings.data.clip
    shape = (settings.model.in_channels, clip.frames, clip.crop, clip.crop)
    together = settings.model.batch_norm == "all"
    batch = settings.lane_batch * (settings.lanes // world.size if together else 1)
    return run_path(folder, model, shape, batch, settings.engine.precision == "bf16", world, recomputed, together)


def rate_at(settings: TrainSettings, step: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    return learning_rate(settings.schedule, settings.lanes, step * settings.batch)


def lanes_of(world: World, lanes: int) -> range:
    """The lanes that this rank runs, one after the other."""
    share = lanes // world.size
    return range(world.rank * share, (world.rank + 1) * share)


def start_from(model: VideoNetwork, settings: TrainSettings, source: Path, classes: list[str]) -> None:
    """Load another run's network; its classifier stays behind when its classes are not the same.

    Raises UserError for a network that computes something else than this run's, or on other input.
    """
    theirs, known = read_settings(source)
    for field in ("name", "depth", "width", "in_channels", "pool1", "midplanes", "eps"):
        _same(f"model.{field}", getattr(theirs.model, field), getattr(settings.model, field), source)
    if settings.model.name == "r2d":  # its first convolution spans the whole clip
        _same("data.clip.frames", theirs.data.clip.frames, settings.data.clip.frames, source)
    _same("data.clip.normalisation", theirs.data.clip.normalisation, settings.data.clip.normalisation, source)
    checkpoint = load_run(source)
    head: Literal["keep", "swap"] = "keep" if known == classes else "swap"
    load_weights(model, checkpoint.model, head, str(source))
    log.info(
        "starting from %s, step %d, classifier %s",
        source,
        checkpoint.step,
        "kept" if head == "keep" else "new",
    )


def _same(field: str, theirs: object, ours: object, source: Path) -> None:
    if theirs != ours:
        values = " ".join(f"{name}={value}" for name, value in _overrides(field, theirs))
        raise UserError(f"{field} is {ours} here and {theirs} in the run to start from", str(source), f"set {values}")


def _overrides(field: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Normalisation):
        return [(f"{field}.{name}", list(numbers)) for name, numbers in value]
    return [(field, value)]


def check(settings: TrainSettings, ranks: int) -> dict[str, object]:
    """Everything that can be refused before a rank starts; returns the derived quantities.

    Raises UserError for an unreachable or empty store, lanes that do not fit the ranks or are too small to
    normalise, a run to start from that is none or another network.
    """
    check_ranks(settings.lanes, ranks)
    run = Run(Path(settings.run), writes=False) if settings.run else None
    sources = open_sources(settings.data, run.versions(settings.data) if run else None)
    classes = sources.classes
    order_of(sources, settings.data, settings.seed, settings.lanes, settings.lane_batch)
    clip = settings.data.clip
    if settings.model.in_channels != clip.channels:
        what = f"clips of input {clip.input} have {clip.channels} channels, the network {settings.model.in_channels}"
        raise UserError(what, "model.in_channels", f"set model.in_channels={clip.channels}, or another data.clip.input")
    check_lane(settings, len(classes))
    quantities = derived(settings, len(classes), sources.samples, ranks)
    if run:
        run.begin(settings, classes, sources.versions, quantities)
    if settings.init:
        start_from(
            build_model(settings.model, len(classes), settings.data.clip.frames, settings.data.clip.crop),
            settings,
            Path(settings.init.run),
            classes,
        )
    return quantities
