"""What the host of a process has left: memory, and room on the disks that the process writes to, asked at a scrape."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from sharding.telemetry.declare import listed
from sharding.telemetry.probe import Probe

_MEMORY = listed(
    "reelscale_host_memory_available_bytes",
    "gauge",
    "Memory of this host that programs may still take.",
    "every process",
    (),
)
_FREE = listed(
    "reelscale_disk_free_bytes",
    "gauge",
    "Room left for this process on the disk of a folder: that of the run, the cache, a local store, or temporary "
    "files. Absent while the disk does not answer.",
    "every process",
    ("folder",),
)
_SIZE = listed("reelscale_disk_size_bytes", "gauge", "Size of the disk of a folder.", "every process", ("folder",))


class Room(NamedTuple):
    """Bytes of a disk."""

    size: int
    free: int


class HostCollector(Collector):
    """Serves memory and disks as they are at a scrape, which no disk holds up: see `Probe`."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """`folders` by what they are called in the label; one that is not there yet counts as what it will lie in."""
        self._probes = {name: Probe(functools.partial(room_of, folder)) for name, folder in folders.items()}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The families without samples."""
        return [GaugeMetricFamily(each.name, each.meaning, labels=each.labels) for each in (_MEMORY, _FREE, _SIZE)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The families; of a disk that does not answer there is no sample."""
        memory, free, size = self.describe()
        memory.add_metric([], psutil.virtual_memory().available)
        for name, probe in self._probes.items():
            if room := probe.answer():
                free.add_metric([name], room.free)
                size.add_metric([name], room.size)
        return [memory, free, size]


@contextmanager
def watching_host(folders: Mapping[str, Path], registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Inside the `with`, the figures of this host are served."""
    collector = HostCollector(folders)
    registry.register(collector)
    try:
        yield
    finally:
        registry.unregister(collector)


def room_of(folder: Path) -> Room:
    """The disk that a folder lies on, or will lie on. Raises OSError."""
    folder = folder.absolute()
    while True:
        try:
            usage = shutil.disk_usage(folder)
            return Room(usage.total, usage.free)
        except FileNotFoundError:
            if folder == folder.parent:
                raise
            folder = folder.parent
