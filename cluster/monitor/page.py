"""The page of `/metrics`: a process' figures, each with the run, rank and node that it is of, rendered now and then."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from sharding.telemetry.declare import listed

log = logging.getLogger("reelscale")

_FRESH_SECONDS = 1.0  # that a rendered page is served for: many readers cost as much as one a second
_READY = listed(
    "reelscale_ready", "gauge", "Whether this process gets on, as /readyz says: 1 or 0.", "every process", ()
)
_LONGEST_SECONDS = 10.0  # that a reader waits: a figure may be read from a disk that hangs


@dataclass(frozen=True)
class Source:
    """Whose figures they are. `run`: the name of the run's folder, or the store's; `node`: the host's name."""

    kind: str
    run: str
    rank: int
    node: str


class LabelledRegistry(Collector):
    """The figures of a registry and `reelscale_ready`, every sample with the labels run, rank and node."""

    def __init__(self, source: Source, is_ready: Callable[[], bool], registry: Collector = REGISTRY) -> None:
        self._labels = {"run": source.run, "rank": str(source.rank), "node": source.node}
        self._is_ready, self._registry = is_ready, registry

    def collect(self) -> Iterator[Metric]:
        """The metrics, whose own labels win over these."""
        ready = GaugeMetricFamily(_READY.name, _READY.meaning)
        ready.add_metric([], float(self._is_ready()))
        for metric in (ready, *self._registry.collect()):
            labelled = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            labelled.samples = [
                Sample(sample.name, {**self._labels, **sample.labels}, *sample[2:]) for sample in metric.samples
            ]
            yield labelled


class Page:
    """The text of `/metrics` in each format, rendered outside of the event loop, by one thread at a time.

    All methods are the event loop's.
    """

    def __init__(self, registry: Collector) -> None:
        self._registry = registry
        self._rendered: dict[str, tuple[float, asyncio.Future[tuple[bytes, str]]]] = {}
        self._failing = False  # whether the last one could not be rendered

    async def get(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics where a header Accept asks for it, else Prometheus' text.

        Raises TimeoutError where the figures do not come, and what collecting them raises.
        """
        # Chosen among two: what a reader writes otherwise ends up in the content type.
        wanted = "application/openmetrics-text; version=1.0.0" if "application/openmetrics-text" in accept else ""
        loop = asyncio.get_running_loop()
        began, page = self._rendered.get(wanted, (float("-inf"), None))
        if page is None or (page.done() and loop.time() - began > _FRESH_SECONDS):
            page = loop.create_future()
            self._rendered[wanted] = loop.time(), page
            threading.Thread(target=self._render, args=(wanted, loop, page), name="monitor-render", daemon=True).start()
        if page.done():
            return page.result()
        async with asyncio.timeout(_LONGEST_SECONDS):
            return await asyncio.shield(page)

    def _render(self, wanted: str, loop: asyncio.AbstractEventLoop, page: asyncio.Future[tuple[bytes, str]]) -> None:
        encode, content_type = choose_encoder(wanted)
        try:
            text = encode(self._registry)
        except Exception as error:
            if not self._failing:
                log.warning("metrics cannot be served: %s", error, exc_info=error)
            self._failing = True
            _settle(loop, page.set_exception, error)
        else:
            self._failing = False
            _settle(loop, page.set_result, (text, content_type))


def _settle(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], outcome: object) -> None:
    """Have a loop call `settle`; nothing where it has ended meanwhile."""
    try:
        loop.call_soon_threadsafe(settle, outcome)
    except RuntimeError:
        return
