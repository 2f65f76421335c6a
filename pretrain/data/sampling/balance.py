"""Class balancing: passes in which samples of rare classes repeat and some of frequent ones are left out, by design.

A pass stays as long as the split. A class of n samples gets a share of it in proportion to n**(1 - balance), so that
each of its samples is shown in proportion to (1/n)**balance on average. Only the index is read: how many samples with
which label each shard has.

Showings are dealt by systematic sampling (Madow, 1949): all samples, class by class and through the shards, lie on a
line, each as long as its showings a pass; a pass shows what lies at the whole numbers, moved by a phase of its own.
So every pass is equally long, a class and a sample get their number of showings rounded up or down in each, and over
the passes what is their due. All is integers, so every machine plans the same. A shard's showings stay together in the
order, so the repeats of a sample in a pass come from one lane, and near each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from pretrain.data.sampling.order import Ints, ShardSizes, mix
from sharding.base.errors import UserError

_PHASE = 2**32  # what a hash of the seed decides; other hashes have a pass here, or a step
_BITS = 32  # the line is measured in units of 2**-32 showings
_MOST = 2**30  # samples and labels of a split that 64-bit integers are enough for
_AT_ONCE = 2**20  # (shard, class) pairs that are worked on together
_GOLDEN = 0x9E3779B97F4A7C15  # the golden ratio, times 2**64: multiples of it cover a range as evenly as any number's


class Balance:
    """The shards of a split as balanced passes show them (`pretrain.data.sampling.order.Shards`).

    sizes: the split's shards; histograms: label → samples of each shard, in the same order, where a sample of several
    labels counts under each of them; balance: 0 < balance <= 1, the exponent. Raises UserError where there are no
    labels.
    """

    def __init__(self, sizes: ShardSizes, histograms: Iterable[Mapping[int, int]], balance: float) -> None:
        self.total, self.bytes = sizes.total, sizes.bytes
        labels, counts, entries = _flattened(histograms)
        assert len(entries) == len(sizes.samples) + 1, "one histogram for each shard"
        if not len(labels):
            raise UserError("no training sample has a label to balance", "balance", "use balance=0")
        present = np.bincount(labels) > 0
        self.classes = np.flatnonzero(present)
        self._class = (np.cumsum(present, dtype=np.int32) - 1)[labels]
        self._entries, self._counts = entries, counts
        self._before = np.zeros(len(counts), np.int32)
        totals = np.zeros(len(self.classes), np.int64)
        for begin, end in pairwise(entries.tolist()):
            here = self._class[begin:end]
            self._before[begin:end] = totals[here]
            totals[here] += counts[begin:end]
        assert max(self.total, totals.sum()) < _MOST
        self.samples = totals
        self._share_ends = _share_ends(totals.tolist(), balance, self.total)
        self._lengths, self._rests = np.divmod(np.diff(self._share_ends), totals)
        self._balance = balance

    @property
    def shares(self) -> NDArray[np.float64]:
        """Showings of each class a pass, on average; they sum to `total`."""
        return np.diff(self._share_ends).astype(np.float64) / 2.0**_BITS

    def showings(self, seed: int, pass_number: int) -> Ints:
        """See `Shards`."""
        phase = _phase(seed, pass_number)
        shown = np.zeros(len(self._entries) - 1, np.int64)
        begin = 0
        while begin < len(shown):  # as many whole shards as make a bounded piece
            most = int(self._entries[begin]) + _AT_ONCE
            end = max(begin + 1, int(np.searchsorted(self._entries, most, side="right")) - 1)
            here = slice(int(self._entries[begin]), int(self._entries[end]))
            classes, before = self._class[here], self._before[here].astype(np.int64)
            showings = self._until(phase, classes, before + self._counts[here]) - self._until(phase, classes, before)
            sums = np.concatenate([[0], np.cumsum(showings)])
            shown[begin:end] = np.diff(sums[self._entries[begin : end + 1] - here.start])
            begin = end
        return shown

    def shown(self, seed: int, pass_number: int, shard: int, numbers: Ints) -> tuple[Ints, Ints, Ints]:
        """See `Shards`: a shard's showings are counted class by class and row by row."""
        phase = _phase(seed, pass_number)
        here = slice(int(self._entries[shard]), int(self._entries[shard + 1]))
        counts = self._counts[here].astype(np.int64)
        classes = np.repeat(self._class[here], counts)
        rows = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(self._before[here], counts) + rows
        showings = self._until(phase, classes, places + 1) - self._until(phase, classes, places)
        ends = np.cumsum(showings)
        samples = np.searchsorted(ends, numbers, side="right")
        return rows[samples], self.classes[classes[samples]], numbers - (ends - showings)[samples]

    def describe(self, names: Sequence[str] | None = None) -> str:
        """What balancing does, for the log; `names` are the split's class names, by number."""
        often = self.shares / self.samples
        most, least = int(np.argmax(often)), int(np.argmin(often))

        def times(number: int) -> str:
            label = int(self.classes[number])
            name = f"class {label}" if names is None else f"'{names[label]}'"
            return f"{often[number]:.3g} times a pass for {name} ({self.samples[number]:,} samples)"

        return (
            f"balance={self._balance:g}: passes of {self.total:,} showings, in which samples repeat and are left out "
            f"by design: each is shown {times(most)}, down to {times(least)}"
        )

    def _until(self, phase: int, classes: NDArray[np.int32], samples: Ints) -> Ints:
        """How many showings of a pass come before the end of so many samples of these classes, and of those before.

        A sample's length is not whole: `samples` have floor(samples × share / all samples), taken apart so that no
        product outgrows 64 bits.
        """
        rests = samples * self._rests[classes] // self.samples[classes]
        return (self._share_ends[classes] + samples * self._lengths[classes] + rests + phase) >> _BITS


def _phase(seed: int, pass_number: int) -> int:
    """By how much a pass moves the line, 0 <= phase < 2**32."""
    return (int(mix(seed, _PHASE)[0]) + pass_number * _GOLDEN) % 2**64 >> (64 - _BITS)


def _share_ends(samples: list[int], balance: float, total: int) -> Ints:
    """Where each class's share of a pass ends, in 2**-32 showings; one more than classes, from 0.

    Decimal powers, as those of floats differ between processors.
    """
    with localcontext(prec=40):
        exponent = 1 - Decimal(str(balance))
        weights = [Decimal(count) ** exponent for count in samples]
        before = list(accumulate(weights))
        ends = [int(weight * (total << _BITS) / before[-1]) for weight in before[:-1]]
    return np.array([0, *ends, total << _BITS], np.int64)


def _flattened(histograms: Iterable[Mapping[int, int]]) -> tuple[Ints, NDArray[np.int32], Ints]:
    """Labels and counts of all shards in one row, each shard's by label, and where each shard's begin and the last end.

    One histogram is looked at at a time: those of a large split take more memory than all else here.
    """
    labels, counts, entries = [], [], [0]
    for histogram in histograms:
        present = sorted(label for label, count in histogram.items() if count)
        labels.append(np.array(present, np.int32))
        counts.append(np.array([histogram[label] for label in present], np.int32))
        entries.append(entries[-1] + len(present))
    if not labels:
        labels, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    return np.concatenate(labels), np.concatenate(counts), np.array(entries, np.int64)
