"""A page of /metrics as figures that can be asked for; read by prometheus_client's parser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_WANTED = ("reelscale_", "process_start_time_seconds")


class Figures:
    """The figures of one process."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for sample in samples:
            self._samples.setdefault(sample.name, []).append(sample)

    def value(self, name: str, **labels: str) -> float | None:
        """The first sample of that name with these labels; None where there is none."""
        samples = self._samples.get(name, ())
        return next((each.value for each in samples if labels.items() <= each.labels.items()), None)

    def whole(self, name: str) -> int | None:
        """`value` as a whole number."""
        value = self.value(name)
        return None if value is None else int(value)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Its samples by a label's value."""
        return {each.labels.get(label, ""): each.value for each in self._samples.get(name, ())}

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of the first sample of that name."""
        samples = self._samples.get(name)
        return samples[0].labels if samples else {}


def parse_page(text: str) -> Figures:
    """The figures of Reelscale on a page, without histograms' buckets and what is no number.

    Raises ValueError for what is no page.
    """
    lines = (line for line in text.split("\n") if line.startswith(_WANTED) and "_bucket{" not in line)
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return Figures(sample for family in families for sample in family.samples if math.isfinite(sample.value))
