"""The job `bench-loader`: how fast this machine reads and decodes a store's clips, and what that costs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.jobs.process_usage import Usage, started_by, usage_of
from cluster.launch.signals import raise_if_interrupted
from cluster.terminal.progress import progress
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import ClipBatch, Loader
from pretrain.data.sources import DataSettings, open_sources, order_of
from pretrain.data.views.frames import needed_frames
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.pool import decoder_count
from pretrain.planning.measured import MeasuredFigure
from sharding.base.settings import Seconds, Settings, load_settings, unit
from sharding.base.user_paths import absolute


class LoaderBench(Settings):
    """What is read, and for how long. A recipe's data, seed and lanes have the same names here and can be tried."""

    data: Annotated[DataSettings, Field(description="stores that are read, and how clips are made of their samples")]
    seed: Annotated[int, Field(ge=0, description="seed of the order of samples and of the random crops")] = 0
    lanes: Annotated[int, Field(ge=1, le=2**16, description="batches made in a step")] = 1
    lane_batch: Annotated[
        int, Field(json_schema_extra=unit("clips"), ge=1, le=2**16, description="clips in a batch")
    ] = 8
    seconds: Annotated[
        Seconds, Field(description="seconds for which each of the two outputs, planes and network input, is measured")
    ] = 10.0
    clips: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("clips"),
            ge=1,
            description="at least so many clips of each output are measured, instead of seconds",
        ),
    ] = None


def run_loader_bench(store: str, overrides: list[str]) -> dict[str, Any]:
    """Measure a store: `planes`, clips as they reach the trainer's process, and `network_input`, made there on the CPU.

    Figures a clip are means; a core second is a CPU second of a worker or of this process. Raises UserError, and
    DecoderDied or DecodersStalled of `pretrain.data.workers.pool`.
    """
    job = load_settings(LoaderBench, None, [f"data.store={json.dumps(absolute(store))}", *overrides])
    data, workers = job.data, decoder_count(job.data.loader)
    others = set(started_by(os.getpid()))
    began = time.perf_counter()
    sources = open_sources(data)
    order = order_of(sources, data, job.seed, job.lanes, job.lane_batch)
    with Loader(sources, order, data.clip, data.loader, range(job.lanes), reading=data.reading) as loader:
        steps = iter(loader)
        next(steps)
        first = time.perf_counter() - began
        queued = max(data.loader.prefetch, -(-2 * workers // job.lanes)) + 1
        bench = _Bench(job, loader, steps, queued, others)
        planes = bench.measured("planes", lambda clips: None)
        tensors = bench.measured("network input", _InputMaker(data.clip))
        stats, damaged = loader.stats, loader.damage_budget.samples
    return {
        "store": data.store,
        "samples": sources.samples,
        "clip": data.clip.model_dump(mode="json", include={"input", "frames", "stride", "fps", "crop"}),
        "workers": workers,
        "lanes": job.lanes,
        "lane_batch": job.lane_batch,
        "first_batch_seconds": first,
        "planes": planes,
        "network_input": tensors,
        "retries": stats.retries,
        "damaged": damaged,
        "looped_clips": stats.looped_clips,
        "measured": _measured_figures(planes, data.clip, "://" in data.store),
    }


def _measured_figures(planes: dict[str, Any], clip: ClipSettings, remote: bool) -> list[dict[str, Any]]:
    """What `reelscale plan --measured` takes: what a core and a clip's reading cost; of clips at a stride."""
    if clip.fps is not None:
        return []
    names: tuple[Literal["clips_per_core_second", "bytes_per_clip"], ...] = ("clips_per_core_second", "bytes_per_clip")
    span = needed_frames(clip.frames, clip.stride)
    return [MeasuredFigure(figure=name, value=planes[name], frames=span, remote=remote).tree() for name in names]


def figure_lines(figures: dict[str, Any]) -> dict[str, str]:
    """The figures of `run_loader_bench` as lines for people, by their names."""
    clip = figures["clip"]
    every = f"at {clip['fps']:g} frames/s" if clip["fps"] else f"at stride {clip['stride']}"
    both = figures["planes"], figures["network_input"]

    def line(text: Callable[[dict[str, Any]], str]) -> str:
        return "".join(f"{text(output):>16}" for output in both)

    return {
        "clips": f"{clip['frames']} frames {every}, of {figures['samples']:,} samples",
        "workers": f"{figures['workers']}, for {figures['lanes']} x {figures['lane_batch']} clips a step",
        "first batch after": f"{figures['first_batch_seconds']:.2f} s",
        "": f"{'planes':>16}{'network input':>16}",
        "clips/s": line(lambda output: f"{output['clips_per_second']:,.1f}"),
        "clips/s a core used": line(lambda output: f"{output['clips_per_core_second']:,.1f}"),
        "a clip: workers' CPU": line(lambda output: f"{output['worker_cpu_ms_per_clip']:,.2f} ms"),
        "  CPU here": line(lambda output: f"{output['own_cpu_ms_per_clip']:,.2f} ms"),
        "  to decode": line(lambda output: f"{output['decode_ms_per_clip']:,.2f} ms"),
        "  waited for": line(lambda output: f"{output['wait_ms_per_clip']:,.2f} ms"),
        "  read": line(lambda output: f"{output['bytes_per_clip'] / 1e3:,.1f} kB"),
        "memory: a worker": line(lambda output: f"{max(output['worker_memory']) / 1e6:,.0f} MB"),
        "  this process": line(lambda output: f"{output['own_memory'] / 1e6:,.0f} MB"),
        "clips measured": line(lambda output: f"{output['clips']:,}"),
        "reads tried again": f"{figures['retries']:,}",
        "damaged samples": f"{figures['damaged']:,}",
        "looped clips": f"{figures['looped_clips']:,}",
    }


class _InputMaker:
    """Makes a network's input of clips, in the same memory each time, as the trainer does."""

    def __init__(self, clip: ClipSettings) -> None:
        self.clip = clip
        self.video: Any = None

    def __call__(self, clips: ClipBatch) -> None:
        self.video = network_input(clips.planes, self.clip, out=self.video)


class _Bench:
    """A loader that is being measured.

    queued: steps that its workers are ahead, at most; others: processes of this one that are not its workers.
    """

    def __init__(
        self, job: LoaderBench, loader: Loader, steps: Iterator[list[ClipBatch]], queued: int, others: set[int]
    ) -> None:
        self.job, self.loader, self.steps, self.queued, self.others = job, loader, steps, queued, others

    def measured(self, what: str, use: Callable[[ClipBatch], object]) -> dict[str, Any]:
        """The figures of clips that are handed to `use`, measured once the clips made before are used up."""
        for _ in range(self.queued):
            self._step(use)
        before, own = replace(self.loader.stats), time.process_time()
        workers, began = self._workers(), time.perf_counter()
        goal = self.job.clips or round(self.job.seconds)
        clips, seconds, shown = 0, 0.0, 0
        with progress(f"bench-loader: {what}", goal) as advance:
            while clips < self.job.clips if self.job.clips else seconds < self.job.seconds:
                self._step(use)
                clips, seconds = self.loader.stats.clips - before.clips, time.perf_counter() - began
                done = min(goal, clips if self.job.clips else int(seconds))
                advance(done - shown, f"{clips / seconds:,.0f} clips/s")
                shown = done
        own = time.process_time() - own
        after, stats = self._workers(), self.loader.stats
        spent = sum(usage.cpu_seconds - workers[pid].cpu_seconds for pid, usage in after.items())
        return {
            "clips": clips,
            "seconds": seconds,
            "clips_per_second": clips / seconds,
            "clips_per_core_second": clips / (spent + own),
            "worker_cpu_ms_per_clip": 1e3 * spent / clips,
            "own_cpu_ms_per_clip": 1e3 * own / clips,
            "decode_ms_per_clip": 1e3 * (stats.decode_seconds - before.decode_seconds) / clips,
            "wait_ms_per_clip": 1e3 * (stats.wait_seconds - before.wait_seconds) / clips,
            "bytes_per_clip": (stats.bytes - before.bytes) / clips,
            "worker_memory": [usage.resident for usage in after.values()],
            "own_memory": usage_of(os.getpid()).resident,
        }

    def _workers(self) -> dict[int, Usage]:
        return {pid: usage for pid, usage in started_by(os.getpid()).items() if pid not in self.others}

    def _step(self, use: Callable[[ClipBatch], object]) -> None:
        raise_if_interrupted()
        for clips in next(self.steps):
            use(clips)
