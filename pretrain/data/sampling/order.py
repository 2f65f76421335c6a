"""The order of training samples: pure functions of (shards, seed, pass, lane), the same on any topology.

A *pass* lays the shards out end to end, shuffled; its places are dealt to the lanes in stretches of neighbours, and a
lane shuffles its stretch block by block. So a lane needs few shards at a time, and any step of any lane is found by
arithmetic and one block's sort: nothing is remembered from step to step, and resuming is asking for another step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pretrain.data.sampling.pass_layout import Pass
from sharding.base.errors import UserError
from sharding.base.lru import LRU, GroupedLRU
from sharding.base.settings import Settings, unit

_STEP, _FIRST, _SECOND, _WHOLE = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 2**64 - 1
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(_STEP), np.uint64(_FIRST), np.uint64(_SECOND)
_SHARDS, _ROWS, _PLACES = 1, 2, 3  # what a hash of (seed, pass, …) decides: shards' order, who gets a row, its place

Ints = NDArray[np.int64]
Remainder = Literal["carry", "drop"]


class OrderSettings(Settings):
    """How samples are shuffled, and what happens at the end of a pass."""

    block_bytes: Annotated[
        int,
        Field(
            json_schema_extra=unit("bytes"),
            ge=1,
            description="bytes of shards whose samples a lane shuffles among each other, the most it needs at a time: "
            "larger mixes better, smaller reads less ahead",
        ),
    ] = 256 * 2**20
    remainder: Annotated[
        Remainder,
        Field(
            description="carry: a pass's last samples open the next batch, and every sample is shown in every pass; "
            "drop: a pass ends with the last whole batch, and leaves other samples out each time"
        ),
    ] = "carry"
    balance: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="exponent of 1/frequency by which classes are drawn; 0: every sample once a pass; 1: every "
            "class equally often, so that rare samples repeat and some frequent ones are left out",
        ),
    ] = 0.0


class Draw(NamedTuple):
    """What a lane shows at one place of its stream.

    `shard` counts the split's shards in index order; `row` is a row of its record or, where `label` >= 0, counts those
    of its rows that have this label. `repeat` counts earlier showings in this pass of this sample (for this label).
    """

    pass_number: int
    shard: int
    row: int
    label: int = -1
    repeat: int = 0
    store: int = 0


def mix(*words: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Hash words (integers or equal-length arrays of them) to uniform 64-bit integers.

    SplitMix64's finaliser (Steele, Lea and Flood, 2014) chained over the words. It is ours rather than
    numpy's Generator because an order must outlive library versions.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for word in words:
            value = np.asarray(word).astype(np.uint64)
            state = (state ^ value) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _MIX_1
            state = (state ^ (state >> np.uint64(27))) * _MIX_2
            state = state ^ (state >> np.uint64(31))
    return state


def sample_randoms(seed: int, draw: Draw, number: int, count: int) -> list[float]:
    """`count` uniform numbers in [0, 1) that belong to this showing of the sample `number` and to nothing else.

    `number` counts the samples through the shards in index order (`ShardSizes.firsts`). Of the draw, the pass, store,
    label and repeat count: a sample of two labels may be shown under both, and differs then, too.
    """
    belongs = 0
    for word in (seed, draw.pass_number, draw.store, number, draw.label + 1, draw.repeat):
        belongs = _mixed(belongs, word)
    return [(_mixed(belongs, place) >> 11) / (1 << 53) for place in range(count)]


def _mixed(state: int, word: int) -> int:
    """One word of `mix`, for few words quicker than arrays."""
    state = ((state ^ (word & _WHOLE)) + _STEP) & _WHOLE
    state = ((state ^ (state >> 30)) * _FIRST) & _WHOLE
    state = ((state ^ (state >> 27)) * _SECOND) & _WHOLE
    return state ^ (state >> 31)


class Shards(Protocol):
    """The shards of a split, and what of them a pass shows."""

    @property
    def total(self) -> int:
        """Showings in a pass, the same in every one."""

    @property
    def bytes(self) -> Ints:
        """Bytes of each shard."""

    def showings(self, seed: int, pass_number: int) -> Ints:
        """How many showings each shard gives to a pass; they sum to `total`."""

    def shown(self, seed: int, pass_number: int, shard: int, numbers: Ints) -> tuple[Ints, Ints, Ints]:
        """Rows, labels and repeats (see `Draw`) of a shard's showings with these numbers."""


@dataclass(frozen=True, eq=False)
class ShardSizes:
    """Samples and bytes of a split's shards in index order (sequences of integers >= 1): each sample once a pass."""

    samples: Ints
    bytes: Ints

    def __post_init__(self) -> None:
        for name in ("samples", "bytes"):
            values = np.array(getattr(self, name), np.int64)
            assert values.ndim == 1 and len(values) and values.min() > 0, (
                f"a split without shards, or one without {name}"
            )
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        assert len(self.samples) == len(self.bytes)

    @cached_property
    def total(self) -> int:
        """Samples of the split."""
        return int(self.samples.sum())

    @property
    def firsts(self) -> Ints:
        """Number of each shard's first sample, counting through the shards."""
        return np.cumsum(self.samples) - self.samples

    def showings(self, seed: int, pass_number: int) -> Ints:
        """See `Shards`."""
        return self.samples

    def shown(self, seed: int, pass_number: int, shard: int, numbers: Ints) -> tuple[Ints, Ints, Ints]:
        """See `Shards`."""
        return numbers, np.broadcast_to(np.int64(-1), len(numbers)), np.broadcast_to(np.int64(0), len(numbers))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardSizes):
            return NotImplemented
        return np.array_equal(self.samples, other.samples) and np.array_equal(self.bytes, other.bytes)

    def __hash__(self) -> int:
        return hash((self.samples.tobytes(), self.bytes.tobytes()))


@dataclass(frozen=True)
class _Block:
    """Showings in the order a lane shows them; `opened` are their shards in order of first use."""

    pass_number: int
    shards: NDArray[np.int32]
    rows: NDArray[np.int32]
    labels: NDArray[np.int32]
    repeats: NDArray[np.int32]
    opened: list[int]


@dataclass(frozen=True)
class Order:
    """Which sample each lane shows at each step.

    shards: what a pass shows; lanes: virtual ranks; lane_batch: samples a lane a step; `block_bytes` and `remainder`:
    see `OrderSettings`; store: the number that its draws carry. Raises UserError where passes without their remainder
    would be empty.
    """

    shards: Shards
    seed: int
    lanes: int
    lane_batch: int
    block_bytes: int = 256 * 2**20
    remainder: Remainder = "carry"
    store: int = 0
    _passes: LRU[int, Pass] = field(default_factory=lambda: LRU(4), init=False, repr=False, compare=False)
    _blocks: GroupedLRU[_Block] = field(default_factory=lambda: GroupedLRU(3), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.remainder == "drop" and not self._kept:
            raise UserError(
                f"{self.samples:,} training samples do not fill one batch of {self.lanes} lanes × {self.lane_batch} "
                "clips, and remainder=drop leaves out what does not",
                "lanes, lane_batch, remainder",
                "use fewer lanes, a smaller lane_batch, or remainder=carry",
            )

    @property
    def samples(self) -> int:
        """Showings in one pass: with remainder=drop, before any is left out."""
        return self.shards.total

    @property
    def _kept(self) -> int:
        """With remainder=drop: samples that each lane shows in each pass."""
        return self.samples // (self.lanes * self.lane_batch) * self.lane_batch

    def lane(self, step: int, lane: int) -> list[Draw]:
        """What one lane shows at one step: `lane_batch` draws."""
        return self.stream(lane, step * self.lane_batch, self.lane_batch)

    def stream(self, lane: int, first: int, count: int) -> list[Draw]:
        """`count` draws of a lane's endless stream, from its position `first` on."""
        draws: list[Draw] = []
        for block, begin, end in self._pieces(lane, first, count):
            columns = (block.shards, block.rows, block.labels, block.repeats)
            values = (column[begin:end].tolist() for column in columns)
            draws += [
                Draw(block.pass_number, shard, row, label, repeat, self.store)
                for shard, row, label, repeat in zip(*values, strict=True)
            ]
        return draws

    def passes(self, step: int) -> float:
        """How many passes are over after so many steps; all lanes end theirs within one sample of each other."""
        if self.remainder == "drop":
            return step * self.lane_batch / self._kept
        return step * self.lane_batch * self.lanes / self.samples

    def pass_of(self, step: int) -> int:
        """The pass that is being shown when a step begins; with remainder=carry some lanes may be a sample ahead."""
        if self.remainder == "drop":
            return step * self.lane_batch // self._kept
        return step * self.lane_batch * self.lanes // self.samples

    def open_shards(self, step: int, lane: int) -> list[tuple[int, int]]:
        """(store, shard) of the whole blocks that a step's draws come from, in order of first use."""
        return self.shards_open(lane, step * self.lane_batch, self.lane_batch)

    def shards_open(self, lane: int, first: int, count: int) -> list[tuple[int, int]]:
        """`open_shards` of any piece of a lane's stream."""
        pieces = self._pieces(lane, first, count)
        return list(dict.fromkeys((self.store, shard) for block, _, _ in pieces for shard in block.opened))

    def _pieces(self, lane: int, first: int, count: int) -> Iterator[tuple[_Block, int, int]]:
        """A piece of a lane's stream as ranges of blocks."""
        assert 0 <= lane < self.lanes and first >= 0
        while count:
            number, place, low, high = self._stretch(lane, first)
            layout = self._passes.get_or_make(number, functools.partial(self._lay_out, number))
            begin, end = layout.block(place, self.block_bytes)
            bounds = max(begin, low), min(end, high)
            shuffle = functools.partial(self._shuffle, layout, *bounds)
            block = self._blocks.get_or_make(lane, (number, *bounds), shuffle)
            taken = min(count, bounds[1] - place)
            yield block, place - bounds[0], place - bounds[0] + taken
            first, count = first + taken, count - taken

    def _stretch(self, lane: int, position: int) -> tuple[int, int, int, int]:
        """Of a position in a lane's stream: its pass, its place there, first and last (excluded) place of the lane.

        With remainder=carry a lane has shown (passes × samples + lane) // lanes samples after so many passes: over the
        lanes this sums to the passes' samples exactly (Hermite's identity), and no two lanes differ by more than one.
        """
        samples, lanes = self.samples, self.lanes
        if self.remainder == "drop":
            number, place = divmod(position, self._kept)
            low = lane * samples // lanes
            return number, low + place, low, low + self._kept
        number = ((position + 1) * lanes - lane - 1) // samples
        shown, after = (number * samples + lane) // lanes, ((number + 1) * samples + lane) // lanes
        low = self._dealt((number + 1) * samples, lane) - self._dealt(number * samples, lane)
        return number, low + position - shown, low, low + after - shown

    def _dealt(self, samples: int, lane: int) -> int:
        """How many of the first `samples` showings of all passes the lanes before this one have."""
        whole, rest = divmod(samples, self.lanes)
        return lane * whole + max(0, lane + rest - self.lanes)

    def _lay_out(self, number: int) -> Pass:
        """The shards of a pass, shuffled."""
        sizes = self.shards.showings(self.seed, number)
        shards = np.flatnonzero(sizes)
        shards = shards[np.argsort(mix(self.seed, number, _SHARDS, shards), kind="stable")]
        ends = [np.concatenate([[0], np.cumsum(values[shards])]) for values in (sizes, self.shards.bytes)]
        return Pass(number, shards, *ends)

    def _shuffle(self, layout: Pass, low: int, high: int) -> _Block:
        """The showings at places low..high-1 of a pass, shuffled.

        A shard that the ends cut is dealt to both sides by a hash, so that neither always has the same of its samples.
        """
        first = int(np.searchsorted(layout.places, low, side="right")) - 1
        last = int(np.searchsorted(layout.places, high, side="left"))
        keys, columns = [], []
        for place in range(first, last):
            shard, begin, end = int(layout.shards[place]), int(layout.places[place]), int(layout.places[place + 1])
            numbers = np.arange(end - begin)
            if begin < low or end > high:
                dealt = np.argsort(mix(self.seed, layout.number, _ROWS, shard, numbers), kind="stable")
                numbers = dealt[max(low - begin, 0) : high - begin]
            keys.append(mix(self.seed, layout.number, _PLACES, shard, numbers))
            shown = self.shards.shown(self.seed, layout.number, shard, numbers)
            columns.append((np.broadcast_to(np.int64(shard), len(numbers)), *shown))
        order = np.argsort(np.concatenate(keys), kind="stable")
        shards, rows, labels, repeats = (
            np.concatenate(column).astype(np.int32)[order] for column in zip(*columns, strict=True)
        )
        opened, uses = np.unique(shards, return_index=True)
        return _Block(layout.number, shards, rows, labels, repeats, opened[np.argsort(uses)].tolist())
