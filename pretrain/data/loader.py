"""The data loader: batches of clips for the trainer, prefetched by worker processes and copied to the device."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import torch

from pretrain import metrics
from pretrain.data.damage_budget import DamageBudget
from pretrain.data.device.tensors import DecodedBatch, DeviceCopier, DeviceCopy, joined, made_batch
from pretrain.data.reading.part_prefetcher import part_prefetcher
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.sampling.mixture import Mixture
from pretrain.data.sampling.order import Draw, Order
from pretrain.data.sources import Sources
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.batches import Batch
from pretrain.data.workers.pool import LoaderSettings, WorkerPool, decoder_count
from pretrain.data.workers.worker import WorkerSetup
from sharding.base.errors import UserError

_FETCHED_AHEAD = 64  # steps before their first use that parts are sent for


@dataclass(frozen=True)
class ClipBatch:
    """A batch on the device: planes for `network_input`; targets float32 [N, classes], a row's labels share 1.

    `keys` are the samples' own, by which they lie in the store.
    """

    planes: DecodedBatch
    targets: torch.Tensor
    keys: list[str]

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ClipBatch:
        """The same clips with `change` applied to each tensor."""
        return ClipBatch(self.planes.map_tensors(change), change(self.targets), self.keys)

    @classmethod
    def joined(cls, batches: Sequence[ClipBatch]) -> ClipBatch:
        """Several batches concatenated to one."""
        planes, targets = joined([batch.planes for batch in batches]), torch.cat([batch.targets for batch in batches])
        return cls(planes, targets, [key for batch in batches for key in batch.keys])


@dataclass
class LoaderStats:
    """Counts of a loader so far, summed over its workers; `wait_seconds` is how long the trainer waited."""

    clips: int = 0
    wait_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes: int = 0
    retries: int = 0
    looped_clips: int = 0


@dataclass(frozen=True)
class _Sent:
    """A batch as a worker made it, and its copy to the device."""

    batch: Batch
    clips: DeviceCopy[ClipBatch]


def target(labels: Sequence[int], classes: int) -> torch.Tensor:
    """Labels of a sample as a distribution, float32 [classes]: k labels weigh 1/k each (IG-65M's multi-label loss)."""
    row = torch.zeros(classes)
    row[list(labels)] = 1.0 / len(labels)
    return row


class Loader:
    """Iterates over steps; each step is a list of `ClipBatch`, one for each of this rank's lanes.

    The position is the step alone, so that it begins anywhere: `state_dict` and `load_state_dict` carry it, and another
    number of ranks or workers goes on with the same samples. What a step gave may be read until the next is asked for.
    A context manager: its processes end with it.
    """

    def __init__(
        self,
        sources: Sources,
        order: Order | Mixture,
        clip: ClipSettings,
        settings: LoaderSettings,
        lanes: range,
        device: torch.device | None = None,
        last: int | None = None,
        reading: ReadingSettings = ReadingSettings(),
    ) -> None:
        self._order, self._lanes, self._classes = order, lanes, len(sources.classes)
        self.unseen_videos = len(sources.unseen)
        device = device or torch.device("cpu")
        self._copier = DeviceCopier(device)
        self.step, self.last = 0, last
        self.stats = LoaderStats()
        where = ", ".join(split.store.url for split in sources.splits)
        self.damage_budget = DamageBudget(where, sources.samples, settings.damaged)
        self._unseen_damage_budget = DamageBudget(sources.unseen.store.url, len(sources.unseen), None)
        self._index = sources.versions
        workers = decoder_count(settings)
        self._prefetch = max(settings.prefetch, -(-2 * workers // len(lanes)))
        # Of every lane, the shards of the block it is in, and one on which it may be already.
        opened = len(order.open_shards(0, lanes.start)) + 1
        for split in sources.splits:
            split.keep_records(opened * len(lanes))
        work = WorkerSetup(clip, reading, tuple(sources.splits), sources.unseen, yields_cpu=device.type == "cpu")
        self._pool = WorkerPool(workers, work, settings.stall_seconds)
        self._part_prefetcher = part_prefetcher(reading, sources.splits, clip)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and threads."""
        self._pool.close()
        self._copier.close()
        if self._part_prefetcher:
            self._part_prefetcher.close()

    def set_stop_check(self, is_stopping: Callable[[], bool], on_store_wait: Callable[[], object]) -> None:
        """Set how waits for clips notice that the run is to stop.

        `is_stopping`: whether it is asked to; `on_store_wait` is called now and then while a store is waited for.
        """
        self._pool.is_stopping, self._pool.on_store_wait = is_stopping, on_store_wait

    def state_dict(self) -> dict[str, Any]:
        """The position: the step that comes next, and the order it belongs to."""
        return {"step": self.step, "order": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position. Raises UserError if it belongs to another order."""
        if state["order"] != self._identity():
            changed = ", ".join(name for name, value in self._identity().items() if state["order"].get(name) != value)
            raise UserError(
                f"the position is of another order of samples (other: {changed})",
                "load_state_dict",
                "load it with the store, seed, lanes and lane_batch that it was saved with",
            )
        self.step = int(state["step"])

    def __iter__(self) -> Iterator[list[ClipBatch]]:
        """Steps from the position on, up to `last`, or without end. Raises what `WorkerPool.take` raises."""
        pool, tickets = self._pool, deque[list[int]]()
        asked, sent = self.step, list[_Sent]()
        try:
            while self.last is None or self.step < self.last:
                while len(tickets) <= self._prefetch and (self.last is None or asked < self.last):
                    tickets.append([])  # at once, so that `finally` sees a step of which a part is asked for
                    tickets[-1].extend(pool.train(self._order.seed, draws) for draws in self._draws(asked))
                    asked += 1
                begin = perf_counter()
                now = sent or self._send(tickets[0])
                clips = [each.clips.result() for each in now]
                # What is made already moves to the device while it computes this step.
                sent = self._send(tickets[1]) if len(tickets) > 1 and all(map(pool.is_ready, tickets[1])) else []
                self._count_batches([each.batch for each in now], perf_counter() - begin)
                self.step += 1
                yield clips
                for ticket in tickets.popleft():
                    pool.release(ticket)
        finally:
            if tickets:  # left early: what was asked for and not taken would come in the way of another iteration
                pool.close()

    def _send(self, tickets: list[int]) -> list[_Sent]:
        """Take batches and send them to the device."""
        batches = [self._pool.take(ticket) for ticket in tickets]
        return [_Sent(batch, self._copier.start(self._clips(batch))) for batch in batches]

    def _draws(self, step: int) -> list[list[Draw]]:
        """What this rank's lanes show at a step; the batches of their blocks, and of blocks to come, are sent for."""
        if self._part_prefetcher:
            steps = (step, step + _FETCHED_AHEAD)
            opened = [self._order.open_shards(later, lane) for later in steps for lane in self._lanes]
            self._part_prefetcher.want(itertools.chain.from_iterable(opened))
        return [self._order.lane(step, lane) for lane in self._lanes]

    def unseen_clips(self, numbers: Sequence[int], at_once: int) -> Iterator[ClipBatch]:
        """One centre clip of each of these samples of the sources' `unseen`, by the same processes.

        Those that are damaged are left out, named in the log and counted.
        """
        for batch in evaluation_clips(self._pool, numbers, 1, at_once):
            self._unseen_damage_budget.add(batch.damaged)
            if batch.keys:
                yield self._copier.start(self._clips(batch)).result()

    def _clips(self, batch: Batch) -> ClipBatch:
        targets = torch.stack([target(labels, self._classes) for labels in batch.labels])
        return ClipBatch(made_batch(batch.planes), targets, batch.keys)

    def _count_batches(self, batches: list[Batch], waited: float) -> None:
        stats = self.stats
        clips = sum(sum(batch.counts) for batch in batches)
        stats.clips += clips
        stats.wait_seconds += waited
        stats.decode_seconds += sum(batch.seconds for batch in batches)
        stats.bytes += sum(batch.bytes for batch in batches)
        stats.retries += sum(batch.retries for batch in batches)
        stats.looped_clips += sum(batch.looped for batch in batches)
        metrics.DATA_WAIT_SECONDS.observe(waited)
        metrics.CLIPS_DECODED.inc(clips)
        metrics.CLIPS_LOOPED.inc(sum(batch.looped for batch in batches))
        for batch in batches:
            for seconds in batch.decode_seconds:
                metrics.DECODE_SECONDS.observe(seconds)
        metrics.BYTES_READ.inc(sum(batch.bytes for batch in batches))
        metrics.READ_RETRIES.inc(sum(batch.retries for batch in batches))
        self.damage_budget.add(damaged for batch in batches for damaged in batch.damaged)

    def _identity(self) -> dict[str, Any]:
        orders = self._order.orders if isinstance(self._order, Mixture) else (self._order,)
        return {
            "seed": self._order.seed,
            "lanes": self._order.lanes,
            "lane_batch": self._order.lane_batch,
            "block_bytes": orders[0].block_bytes,
            "remainder": orders[0].remainder,
            "samples": [order.samples for order in orders],
            "index": self._index,
        }


def evaluation_clips(
    pool: WorkerPool, numbers: Sequence[int], clips: int, at_once: int, crops: int = 1
) -> Iterator[Batch]:
    """The `clips` uniform clips of each sample, in order: `at_once` samples a batch, each decoded in one pass.

    They are seen in their centre, and their planes hold all views of `crops` (`evaluation_views`). A batch may be read
    until the next is asked for. Its `damaged` are the samples of it that cannot be read: no figure leaves out a video
    untold.
    """
    chunks = [list(numbers[begin : begin + at_once]) for begin in range(0, len(numbers), at_once)]
    tickets: deque[int] = deque()
    asked = 0
    for _ in chunks:
        while asked < len(chunks) and len(tickets) <= 2 * pool.count:
            tickets.append(pool.evaluate(chunks[asked], clips, crops))
            asked += 1
        ticket = tickets.popleft()
        yield pool.take(ticket)
        pool.release(ticket)
