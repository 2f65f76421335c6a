"""A plan for people and programs: every figure with the figures that it came from."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from pretrain.planning.advice import advice, purchases
from pretrain.planning.all_reduce import halves
from pretrain.planning.estimate import Cluster, Estimate, estimate, gpu_hours
from pretrain.planning.faults import stretches
from pretrain.planning.figure import Figure, number
from pretrain.planning.machines import cluster_of
from pretrain.planning.measured import Measured, by_frames
from pretrain.planning.reading import clip_bytes, decoding_cores, hottest_shard_clips
from pretrain.planning.settings import PlanSettings
from pretrain.planning.workload import StoreFacts, Workload, lanes_for, workload_of
from pretrain.settings import TrainSettings

_GB = 1e9
_RARE = 0.1  # of the time between two interruptions: in so short a stretch a second one is hardly met


def plan_run(
    settings: TrainSettings, plan: PlanSettings, store: StoreFacts, measured: Measured, remote: bool
) -> dict[str, Any]:
    """The plan as a JSON tree: `inputs`, `figures` by section, `limits`, `binds`, `purchases`, `buy_first`, `notes`.

    Each input and figure is {name, value, unit, arithmetic, source}. Raises UserError for a GPU without a data sheet.
    """
    lanes, note = lanes_for(settings, plan.nodes * plan.gpus_per_node)
    load, read = _as_read(workload_of(settings, store, lanes), measured)
    on, inputs, notes = cluster_of(plan, load, measured, remote)
    result = estimate(load, on)
    rows = purchases(load, on, result)
    sections = {
        "run": _run(load, settings),
        "step": _step(load, on, result),
        "reading": _reading(load, on, result),
        "checkpoints and interruptions": _faults(load, on, result),
        "in all": _totals(load, on, result),
    }
    return {
        "inputs": [_tree(figure) for figure in (*store.figures, *read, *inputs)],
        "figures": {name: [_tree(figure) for figure in figures] for name, figures in sections.items()},
        "limits": result.limits,
        "binds": result.binds,
        "purchases": [{name: _finite(value) for name, value in asdict(row).items()} for row in rows],
        "buy_first": advice(load, on, result, rows),
        "notes": [*filter(None, [note, _note_on_flow(settings)]), *notes],
    }


def _note_on_flow(settings: TrainSettings) -> str:
    """What a rate of decoding does not hold for; "" where it does."""
    if settings.data.clip.input == "rgb":
        return ""
    return (
        "the rate of a core's clips is for optical flow that the store holds; computed as clips are decoded, where it "
        "holds none, it is some forty times slower"
    )


def _as_read(load: Workload, measured: Measured) -> tuple[Workload, list[Figure]]:
    """The workload with the bytes of a clip that a loader was seen to read, where it reads ranges; and that figure."""
    seen = None if load.whole_parts else by_frames(measured, "bytes_per_clip", load.span)
    if seen is None:
        return load, []
    value, how, _ = seen
    return replace(load, clip_bytes=value), [Figure("read for a clip", value, "bytes", "", how)]


def _tree(figure: Figure) -> dict[str, Any]:
    return {name: _finite(value) for name, value in figure._asdict().items()}


def _finite(value: Any) -> Any:
    """A value as JSON can say it: null where it has no end."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run(load: Workload, settings: TrainSettings) -> list[Figure]:
    schedule, facts = settings.schedule, load.store
    clips = load.steps * load.batch
    sample = f"{number(facts.frames)} frames × {number(facts.bytes_per_frame)} bytes"
    return [
        Figure("batch", load.batch, "clips", f"{load.lanes} lanes × {load.lane_batch}"),
        Figure("clips", clips, "", f"{schedule.epochs:g} epochs × {schedule.epoch_clips:,}, the last step full"),
        Figure("steps", load.steps, "", f"{number(clips)} clips / {number(load.batch)}"),
        Figure("passes", clips / facts.samples, "", f"{number(clips)} clips / {number(facts.samples)} samples"),
        Figure("store", facts.total_bytes / _GB, "GB", f"{number(facts.samples)} samples × {sample}"),
        Figure("parameters", load.parameters, "", "of the network"),
        Figure("forward pass", load.macs / 1e9, "GMACs", "of a clip, counted layer by layer"),
        Figure("training", 6 * load.macs / 1e9, "GFLOP", f"a clip: 3 passes × 2 × {number(load.macs / 1e9)} GMACs"),
    ]


def _step(load: Workload, on: Cluster, result: Estimate) -> list[Figure]:
    own = load.batch // on.ranks
    nodes, ranks = on.nodes, on.ranks
    size = f"{load.gradient_bytes / _GB:.4g} GB"
    ring = f"2 × ({nodes}−1)/{nodes} × {size} / {on.network / _GB:g} GB/s + 2 × {nodes - 1} × {on.latency:g} s"
    levels = math.ceil(math.log2(nodes))
    tree = f"2 × {size} / {on.network / _GB:g} GB/s + 2 × {levels} × {on.latency:g} s" if nodes > 1 else ""
    inside = 2 * (on.gpus_per_node - 1) / on.gpus_per_node * load.gradient_bytes / on.link
    links = f"{number(inside)} s over the nodes' links"
    gradients, weights = halves(load.zero, load.lanes // ranks)
    kinds = f"ZeRO {load.zero}, {result.by}: {gradients} × half of it for gradients, {weights} × for weights"
    hidden = result.exchange - result.exposed
    rate = load.batch / result.step
    slow = (result.slowest - 1) * result.compute
    gpu_side = f"{number(result.compute)} + {number(slow)} + {number(result.exposed)} s"
    return [
        Figure("computing", result.compute, "s", f"{own} clips a GPU / ({number(on.clip_rate)} clips/s × {on.e2e:g})"),
        Figure("waiting for the slowest", slow, "s", f"{ranks} ranks: {number(result.slowest)} × the mean"),
        Figure("all-reduce by ring", result.ring, "s", f"{ring} + {links}" if nodes > 1 else links),
        Figure("all-reduce by tree", result.tree, "s", f"{tree} + {links}" if nodes > 1 else links),
        Figure("gradient exchange", result.exchange, "s", kinds),
        Figure("of it waited for", result.exposed, "s", f"{number(result.exchange)} − {number(hidden)} s hidden"),
        Figure("GPUs' step", result.limits["GPUs"], "s", gpu_side),
        Figure("step", result.step, "s", f"the longest of the limits: {result.binds}"),
        Figure("rate", rate, "clips/s", f"{number(load.batch)} clips / {number(result.step)} s"),
        Figure("rate of a GPU", rate / ranks, "clips/s", f"/ {ranks} GPUs"),
    ]


def _reading(load: Workload, on: Cluster, result: Estimate) -> list[Figure]:
    rate, facts = load.batch / result.step, load.store
    of_a_node = rate / on.nodes
    cores = decoding_cores(on.cores, on.gpus_per_node, load.workers)
    hot = hottest_shard_clips(load.lanes, load.lane_batch, facts.shards, facts.shard_bytes, load.block_bytes)
    assumed = clip_bytes(load.span, facts.bytes_per_frame, facts.frames)
    clip = (
        "measured"
        if not load.whole_parts and load.clip_bytes != assumed
        else f"a whole sample, {number(facts.frames)} frames × {number(facts.bytes_per_frame)} bytes"
        if load.whole_parts
        else f"({load.span} + a group of 16) frames × {number(facts.bytes_per_frame)} bytes, at most the sample"
    )
    requests = f"{number(rate)} clips/s × {number(load.clip_requests)} a clip"
    return [
        Figure("read for a clip", load.clip_bytes / 1e3, "kB", clip),
        Figure("a node reads", of_a_node * load.clip_bytes / _GB, "GB/s", f"{number(of_a_node)} clips/s × that"),
        Figure("all read", rate * load.clip_bytes / _GB, "GB/s", f"× {on.nodes} nodes"),
        Figure("requests", rate * load.clip_requests, "a second", requests),
        Figure("cores that decode", cores, "a node", f"of {on.cores}, at most 16 a rank unless set"),
        Figure(
            "cores needed", of_a_node / on.core_rate, "a node", f"{number(of_a_node)} / {number(on.core_rate)} clips/s"
        ),
        Figure("clips of one shard", hot, "a step", f"{number(facts.shards)} shards for {load.lanes} lanes"),
    ]


def _faults(load: Workload, on: Cluster, result: Estimate) -> list[Figure]:
    a_day = 86400 / result.between
    write = load.checkpoint_bytes / on.write
    interval = load.checkpoint_every * (result.step + result.validation)
    saved = load.steps // load.checkpoint_every
    daly = f"√(2 × {number(on.pause)} s × {number(result.between)} s), Young and Daly: {result.best_steps:,} steps"
    lengths = stretches(result.work, min(interval, result.work), on.pause)
    between = number(result.between)
    met = " + ".join(f"{count:,} × (e^({number(length)} s / {between} s) − 1)" for count, length in lengths)
    each_step = f"({number(result.step)} + {number(result.validation)} s of validation)"
    per_day = f"{on.ranks} GPUs × {on.per_gpu_day:.4g} + {on.nodes} nodes × {on.per_node_day:g}"
    cost, cost_words = _cost_of_one(load, on, result, lengths)
    return [
        Figure("checkpoint", load.checkpoint_bytes / _GB, "GB", "weights, momentum and averages in fp32"),
        Figure("writing it", write, "s", f"while training goes on, at {on.write / _GB:g} GB/s"),
        Figure("checkpoints", saved, "", f"{number(load.steps)} steps / {load.checkpoint_every:,}"),
        Figure("training waits", saved * on.pause, "s", f"{saved:,} × {number(on.pause)} s"),
        Figure("interruptions a day", a_day, "", per_day),
        Figure("between two", result.between / 86400, "days", f"1 / {number(a_day)}"),
        Figure("interruptions", result.interruptions, "", f"{met}, each begun anew"),
        Figure("one costs", cost, "s", cost_words),
        Figure("interval", interval / 3600, "hours", f"{load.checkpoint_every:,} steps × {each_step}"),
        Figure("best interval", result.best / 3600, "hours", daly),
        Figure("by it saved", (result.total - result.at_best) / 3600, "hours", "of the whole run"),
    ]  # fmt: skip


def _cost_of_one(load: Workload, on: Cluster, result: Estimate, lengths: list[tuple[int, float]]) -> tuple[float, str]:
    """Seconds that an interruption costs, and what they come from.

    What is done anew is half an interval where interruptions are rare; else more than one may meet the same stretch.
    """
    down = f"{load.lost_seconds:g} noticed + {on.reschedule:g} + {number(on.start)} s to the first step"
    longest = max(length for _, length in lengths)
    if longest <= _RARE * result.between:
        return result.down + longest / 2, f"{down} + {number(longest / 2)} s done anew, half an interval"
    if math.isinf(result.interruptions):
        return math.inf, f"{down}, and all that was done anew, without an end"
    beyond = result.total - on.start - sum(count * length for count, length in lengths)
    cost = beyond / result.interruptions
    rest = f"{down} + {number(cost - result.down)} s done anew"
    return cost, f"{number(beyond)} s beyond work and pauses / {number(result.interruptions)}; {rest}"


def _totals(load: Workload, on: Cluster, result: Estimate) -> list[Figure]:
    hours = gpu_hours(result, on)
    anew = result.total - on.start - result.work
    steps = f"{number(load.steps)} × {number(result.step)} s"
    validated = f"{load.steps // load.validation_every} × {number(load.validation_clips)} clips, forward alone"
    return [
        Figure("steps", load.steps * result.step / 3600, "hours", steps),
        Figure("validations", load.steps * result.validation / 3600, "hours", validated),
        Figure("start, pauses, interruptions", (anew + on.start) / 3600, "hours", f"{number(on.start)} s + the above"),
        Figure("time", result.total / 86400, "days", f"{number(result.total / 3600)} hours"),
        Figure("GPU-hours", hours, "", f"{number(result.total / 3600)} hours × {on.ranks} GPUs"),
        Figure("cost", hours * on.price, "USD", f"{number(hours)} × {on.price:g}"),
    ]  # fmt: skip
