"""Metrics, declared with prometheus_client and listed, so that a table of all of them can be made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import Counter, Gauge, Histogram, Metric

ServedBy = Literal["every process", "every rank", "rank 0", "`shard`, `shards retry`", "`evaluate`"]
Kind = Literal["counter", "gauge", "histogram", "info"]

PREFIX = "reelscale_"
# What a name ends with where it has a unit; the longest that fits.
_UNITS = {
    "_timestamp_seconds": "seconds since 1970",
    "_per_second": "1/second",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_ratio": "0 to 1",
    "_celsius": "°C",
}


@dataclass(frozen=True)
class Declaration:
    """A metric as users know it: its name as it is scraped, but for a histogram's `_bucket`, `_sum` and `_count`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    served_by: ServedBy

    @property
    def unit(self) -> str:
        """What it is measured in, by its name's end; "" for a number of things."""
        bare = self.name.removesuffix("_total")
        return next((unit for ending, unit in _UNITS.items() if bare.endswith(ending)), "")


DECLARED: dict[str, Declaration] = {}


class MeasuredGauge(Gauge):
    """A gauge that has no sample before it is measured, nor while what was set is NaN: a figure, or none."""

    def __init__(self, name: str, documentation: str, labelnames: Iterable[str] = (), **options: Any) -> None:
        super().__init__(name, documentation, labelnames, **options)
        if not labelnames:
            self.unset()

    def unset(self) -> None:
        """Have no sample until the next `set`."""
        self.set(math.nan)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client: the family, with the samples that are numbers."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not math.isnan(sample.value)]
            yield family


def gauge(name: str, meaning: str, served_by: ServedBy, labels: Sequence[str] = ()) -> MeasuredGauge:
    """A gauge without a sample until it is measured."""
    listed(name, "gauge", meaning, served_by, labels)
    return MeasuredGauge(name, meaning, labels)


def counter(
    name: str, meaning: str, served_by: ServedBy, label: str | None = None, values: Sequence[str] = ()
) -> Counter:
    """A counter, whose name ends with `_total`.

    `values`: those of its label, each served as 0 from the beginning: Prometheus sees no increase in a first sample.
    """
    labels = (label,) if label else ()
    listed(name, "counter", meaning, served_by, labels)
    declared = Counter(name, meaning, labels)
    for value in values:
        declared.labels(value)
    return declared


def histogram(name: str, meaning: str, served_by: ServedBy, buckets: Sequence[float]) -> Histogram:
    """A histogram; `buckets`: the highest value of each but the last, which has none."""
    listed(name, "histogram", meaning, served_by, ())
    return Histogram(name, meaning, buckets=buckets)


def info(name: str, meaning: str, served_by: ServedBy, labels: Sequence[str]) -> MeasuredGauge:
    """A gauge that is 1 and says something by its labels; without a sample until `set_info`."""
    listed(name, "info", meaning, served_by, labels)
    return MeasuredGauge(name, meaning, labels)


def set_info(declared: MeasuredGauge, **labels: object) -> None:
    """Have an `info` say this, and nothing that it said before. A label of "" is none for Prometheus."""
    declared.clear()
    declared.labels(**labels).set(1)


def listed(name: str, kind: Kind, meaning: str, served_by: ServedBy, labels: Sequence[str]) -> Declaration:
    """The declaration of a metric, which is now in the table; a collector of its own may serve it."""
    declaration = Declaration(name, kind, tuple(labels), meaning, served_by)
    DECLARED[name] = declaration
    return declaration


def metrics_table() -> str:
    """All metrics of the modules that are imported, by name, as a table in Markdown."""
    rows = ["| metric | type | labels | unit | what it is | served by |", "|---|---|---|---|---|---|"]
    for _, each in sorted(DECLARED.items()):
        labels = ", ".join(f"`{label}`" for label in each.labels)
        cells = (f"`{each.name}`", each.kind, labels, each.unit, each.meaning.removesuffix("."), each.served_by)
        rows.append("".join(f"| {cell} " for cell in cells) + "|")
    return "\n".join(rows) + "\n"
