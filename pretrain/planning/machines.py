"""The cluster of a plan: each number from what is set, else from what was measured, else a default; with its source."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.engine.mfu import PEAKS, listed_peak
from pretrain.planning.compute import clips_per_second
from pretrain.planning.estimate import Cluster
from pretrain.planning.figure import Figure
from pretrain.planning.measured import ClipRate, Measured, by_frames, clip_rate, gpu_named
from pretrain.planning.reading import S3_READS
from pretrain.planning.settings import PlanSettings, label
from pretrain.planning.workload import Workload, source_of
from sharding.base.errors import UserError

_GB = 1e9
_PLAIN = (  # settings that are taken as they are, in the order shown
    "jitter", "network_gb_per_second", "network_latency_seconds", "link_gb_per_second", "overlap", "cores_per_node",
    "store_gb_per_second", "store_total_gb_per_second", "shard_gb_per_second", "interruptions_per_gpu_day",
    "preemptions_per_node_day", "reschedule_seconds", "price_per_gpu_hour",
)  # fmt: skip


@dataclass
class _Inputs:
    """Figures that went in, in their order."""

    plan: PlanSettings
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: float | str, unit: str, source: str, arithmetic: str = "") -> None:
        """Note one."""
        self.figures.append(Figure(name, value, unit, arithmetic, source))

    def plain(self, name: str) -> None:
        """Note a setting that is taken as it is."""
        value = getattr(self.plan, name)
        extra = type(self.plan).model_fields[name].json_schema_extra
        unit = str(extra["unit"]) if isinstance(extra, dict) else ""
        shown = "no limit" if value is None else value
        self.add(label(name), shown, unit if value is not None else "", source_of(self.plan, name))


def gpu_of(plan: PlanSettings, measured: Measured) -> str:
    """The GPU's name as its data sheet has it: the one set, else the one that was measured, else the default.

    Raises UserError for one without a data sheet here, unless clips/s are set.
    """
    name = plan.gpu if "gpu" in plan.model_fields_set else gpu_named(measured) or plan.gpu
    words = {word.lower(): word for word in PEAKS}
    sheet = words.get(name.lower(), name)
    if listed_peak(sheet) is None and plan.clips_per_second is None:
        known_gpus = ", ".join(PEAKS)
        raise UserError(
            f"no data sheet of a GPU {name!r}",
            "--gpu, plan.gpu",
            f"name one of {known_gpus}, or set plan.clips_per_second",
        )
    return sheet


def cluster_of(
    plan: PlanSettings, load: Workload, measured: Measured, remote: bool
) -> tuple[Cluster, list[Figure], list[str]]:
    """The cluster, the figures that it was made of, and notes. `remote`: whether the store is an object store."""
    inputs, notes = _Inputs(plan), [f"{path} holds no figure that a plan uses" for path in measured.silent]
    gpu = gpu_of(plan, measured)
    rate = _clip_rate(plan, load, measured, gpu, inputs)
    core_rate = _core_rate(plan, load, measured, remote, inputs)
    requests = plan.store_requests_per_second
    if requests is not None:
        inputs.add("store requests", requests, "a second", source_of(plan, "store_requests_per_second"))
    elif remote:
        requests = S3_READS
        inputs.add("store requests", requests, "a second", "published: S3's reads a prefix, before it spreads it")
    pause = _pause(plan, load, measured, inputs)
    start = _start(plan, measured, inputs)
    for name in _PLAIN:
        inputs.plain(name)
    total, shard = plan.store_total_gb_per_second, plan.shard_gb_per_second
    cluster = Cluster(
        nodes=plan.nodes,
        gpus_per_node=plan.gpus_per_node,
        clip_rate=rate.rate,
        e2e=1.0 if rate.is_training else plan.e2e,
        jitter=plan.jitter,
        network=plan.network_gb_per_second * _GB,
        latency=plan.network_latency_seconds,
        link=plan.link_gb_per_second * _GB,
        exchange=plan.exchange,
        overlap=plan.overlap,
        cores=plan.cores_per_node,
        core_rate=core_rate,
        store=plan.store_gb_per_second * _GB,
        store_total=total and total * _GB,
        requests=requests,
        shard=shard and shard * _GB,
        pause=pause,
        write=plan.checkpoint_write_gb_per_second * _GB,
        per_gpu_day=plan.interruptions_per_gpu_day,
        per_node_day=plan.preemptions_per_node_day,
        reschedule=plan.reschedule_seconds,
        start=start,
        price=plan.price_per_gpu_hour,
    )
    return cluster, inputs.figures, notes


def _clip_rate(plan: PlanSettings, load: Workload, measured: Measured, gpu: str, inputs: _Inputs) -> ClipRate:
    """A GPU's clips/s: set, measured, or by an assumed share of its peak."""
    inputs.add("GPU", gpu, "", source_of(plan, "gpu") if "gpu" in plan.model_fields_set else "measured or assumed")
    rate = clip_rate(measured, gpu, load.half, load.macs)
    if plan.clips_per_second is not None:
        rate = ClipRate(plan.clips_per_second, False, source_of(plan, "clips_per_second"))
    if rate is None or ("mfu" in plan.model_fields_set and plan.clips_per_second is None):
        sheet = listed_peak(gpu)
        assert sheet is not None
        peak = sheet.half if load.half else sheet.tf32
        kind = "bf16" if load.half else "TF32"
        inputs.add("peak", peak / 1e12, "TFLOP/s", f"published: NVIDIA's data sheet, dense {kind}")
        inputs.add("MFU", plan.mfu, "share", source_of(plan, "mfu"))
        rate = ClipRate(clips_per_second(peak, plan.mfu, load.macs), False, "")
        arithmetic = f"{peak / 1e12:g} TFLOP/s × {plan.mfu:g} / ({6 * load.macs / 1e9:.4g} GFLOP a clip)"
        inputs.add("a GPU's network alone", rate.rate, "clips/s", "", arithmetic)
    else:
        inputs.add("a GPU's training" if rate.is_training else "a GPU's network alone", rate.rate, "clips/s", rate.how)
    if not rate.is_training:
        inputs.plain("e2e")
    return rate


def _core_rate(plan: PlanSettings, load: Workload, measured: Measured, remote: bool, inputs: _Inputs) -> float:
    """Clips that a core reads and decodes in a second."""
    was_measured = by_frames(measured, "clips_per_core_second", load.span)
    if "clips_per_core_second" in plan.model_fields_set or was_measured is None:
        is_set = "clips_per_core_second" in plan.model_fields_set
        rate = plan.clips_per_core_second * (1 if is_set else 16 / load.span)
        inputs.add("a core's clips", rate, "clips/s", source_of(plan, "clips_per_core_second"))
        return rate
    rate, how, from_remote = was_measured
    reading = next(iter(measured.of("range_cpu_seconds")), None)
    if remote and not from_remote and reading is not None:
        path, figure = reading
        how += f", of a directory; {1e3 * figure.value:.3g} ms of CPU a request on top: {path}"
        rate = 1 / (1 / rate + figure.value * load.clip_requests)
    inputs.add("a core's clips", rate, "clips/s", how)
    return rate


def _pause(plan: PlanSettings, load: Workload, measured: Measured, inputs: _Inputs) -> float:
    """Seconds for which a checkpoint halts training."""
    name, entry = "checkpoint_copy_gb_per_second", next(iter(measured.of("checkpoint_pause_seconds")), None)
    if entry is None or entry[1].bytes is None or name in plan.model_fields_set:
        inputs.plain(name)
        rate = getattr(plan, name)
        pause: float = load.checkpoint_bytes / (rate * _GB)
        size = f"{load.checkpoint_bytes / _GB:.3g} GB / {rate:g} GB/s"
        inputs.add("a checkpoint's pause", pause, "s", "", size)
    else:
        path, figure = entry
        pause = figure.value * load.checkpoint_bytes / (figure.bytes or 1.0)
        inputs.add(
            "a checkpoint's pause", pause, "s", f"measured: {path}, {figure.value:.3g} s of {figure.bytes:.3g} bytes"
        )
    inputs.plain("checkpoint_write_gb_per_second")
    return pause


def _start(plan: PlanSettings, measured: Measured, inputs: _Inputs) -> float:
    """Seconds from the ranks' start to their first step."""
    entry = next(iter(measured.of("start_seconds")), None)
    if entry is None or not entry[1].device or "start_seconds" in plan.model_fields_set:
        inputs.plain("start_seconds")
        return plan.start_seconds
    inputs.add(label("start_seconds"), entry[1].value, "seconds", f"measured: {entry[0]}")
    return entry[1].value
