"""Several stores in one stream, so many samples of one for every so many of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from pretrain.data.sampling.order import Draw, Ints, Order, mix
from sharding.base.errors import UserError

_PERIODS = 2**32 + 2  # what a hash of the seed decides; other hashes have a pass here, or a step
_LONGEST_PERIOD = 2**16


@dataclass(frozen=True)
class Mixture:
    """Which sample of which store each lane shows at each step.

    orders: the stores' own, numbered by `store` from 0, of the same lanes and lane_batch; weights: how many samples of
    each store come together, positive integers; seed: of how they are mixed. Each lane's stream is a row of periods
    that hold every store as often as its weight says (in lowest terms), shuffled; the samples of a store come in its
    own order's sequence. Raises UserError for weights that cannot be had.
    """

    orders: tuple[Order, ...]
    weights: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        assert [order.store for order in self.orders] == list(range(len(self.orders)))
        assert len({(order.lanes, order.lane_batch) for order in self.orders}) == 1
        remedy = "give every store a small whole number, such as 3 and 1"
        if len(self.weights) != len(self.orders) or min(self.weights) < 1:
            found = ", ".join(map(str, self.weights))
            raise UserError(f"{len(self.orders)} stores have the weights {found}", "weights", remedy)
        if self.period > _LONGEST_PERIOD:
            raise UserError(f"the weights first come out even after {self.period:,} samples", "weights", remedy)

    @property
    def lanes(self) -> int:
        """Virtual ranks."""
        return self.orders[0].lanes

    @property
    def lane_batch(self) -> int:
        """Samples a lane a step."""
        return self.orders[0].lane_batch

    @property
    def parts(self) -> tuple[int, ...]:
        """Samples of each store in a period."""
        divisor = gcd(*self.weights)
        return tuple(weight // divisor for weight in self.weights)

    @property
    def period(self) -> int:
        """Samples after which the weights come out even."""
        return sum(self.parts)

    def lane(self, step: int, lane: int) -> list[Draw]:
        """What one lane shows at one step: `lane_batch` draws."""
        return self.stream(lane, step * self.lane_batch, self.lane_batch)

    def stream(self, lane: int, first: int, count: int) -> list[Draw]:
        """`count` draws of a lane's endless stream, from its position `first` on."""
        stores, firsts, counts = self._stores(lane, first, count)
        draws = [iter(order.stream(lane, *piece)) for order, *piece in zip(self.orders, firsts, counts, strict=True)]
        return [next(draws[store]) for store in stores]

    def passes(self, step: int) -> float:
        """How many passes of every store are over after so many steps: those of the store that is shown least."""
        return min(self.passes_by_store(step))

    def passes_by_store(self, step: int) -> list[float]:
        """How many passes of each store are over after so many steps."""
        return [order.passes(step) * part / self.period for order, part in zip(self.orders, self.parts, strict=True)]

    def open_shards(self, step: int, lane: int) -> list[tuple[int, int]]:
        """(store, shard) of the whole blocks that a step's draws come from; each store's in order of first use."""
        batch = self.orders[0].lane_batch
        stores, firsts, counts = self._stores(lane, step * batch, batch)
        return [
            opened
            for store in dict.fromkeys(stores)
            for opened in self.orders[store].shards_open(lane, firsts[store], counts[store])
        ]

    def describe(self, names: Sequence[str]) -> str:
        """What mixing does, for the log; `names` are the stores'."""
        passes = self.passes_by_store(1)
        slowest = int(np.argmin(passes))
        descriptions = []
        for number, (name, order, part) in enumerate(zip(names, self.orders, self.parts, strict=True)):
            often = "" if number == slowest else f", {passes[number] / passes[slowest]:.3g} times in each of those"
            descriptions.append(f"{name}: {part} of every {self.period}, a pass is {order.samples:,} samples{often}")
        return f"a pass of {names[slowest]} takes the longest; " + "; ".join(descriptions)

    def _stores(self, lane: int, first: int, count: int) -> tuple[list[int], list[int], list[int]]:
        """Of a piece of a lane's stream: the store of each place, and each store's first position and count there."""
        begin, end = first // self.period, (first + count - 1) // self.period + 1
        periods, places = np.divmod(np.arange(begin * self.period, end * self.period), self.period)
        keys = mix(self.seed, _PERIODS, lane, periods, places).reshape(-1, self.period)
        unshuffled = np.repeat(np.arange(len(self.parts)), self.parts)
        stores = unshuffled[np.argsort(keys, axis=1, kind="stable")].ravel()
        skipped = first - begin * self.period
        before, piece = self._counts(stores[:skipped]), stores[skipped : skipped + count]
        firsts = [begin * part + int(shown) for part, shown in zip(self.parts, before, strict=True)]
        return piece.tolist(), firsts, self._counts(piece).tolist()

    def _counts(self, stores: Ints) -> Ints:
        """How many places each store has."""
        return np.bincount(stores, minlength=len(self.parts))
