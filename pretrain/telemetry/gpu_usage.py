"""What NVML says of a rank's GPU, asked at a scrape: memory, utilisation, temperature.

It is asked by NVIDIA's own library nvidia-ml-py (`pip install reelscale[gpu]`). Without it, and without a GPU, there
are no such metrics.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from sharding.telemetry.declare import listed
from sharding.telemetry.probe import Probe

_PRESENT = "Absent without a GPU or the library nvidia-ml-py."
_USED = listed(
    "reelscale_gpu_memory_used_bytes",
    "gauge",
    f"Memory of this rank's GPU that is in use, by any process. {_PRESENT}",
    "every rank",
    (),
)
_TOTAL = listed("reelscale_gpu_memory_total_bytes", "gauge", f"Memory of this rank's GPU. {_PRESENT}", "every rank", ())
_UTILIZATION = listed(
    "reelscale_gpu_utilization_ratio",
    "gauge",
    f"Share of the last moments in which any kernel ran on this rank's GPU. {_PRESENT}",
    "every rank",
    (),
)
_TEMPERATURE = listed(
    "reelscale_gpu_temperature_celsius", "gauge", f"Temperature of this rank's GPU. {_PRESENT}", "every rank", ()
)


class GpuCollector(Collector):
    """Serves what NVML says of one GPU; what it does not say, as of a part of a GPU (MIG), has no sample."""

    def __init__(self, ask: Callable[[], dict[str, float]]) -> None:
        """`ask` gives the figures by their metrics' names."""
        self._probe: Probe[dict[str, float]] = Probe(ask)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The families without samples."""
        return [GaugeMetricFamily(each.name, each.meaning) for each in (_USED, _TOTAL, _UTILIZATION, _TEMPERATURE)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The families with what NVML says now."""
        figures = self._probe.answer() or {}
        for family in self.describe():
            if family.name in figures:
                family.add_metric([], figures[family.name])
            yield family


@contextmanager
def watching_gpu(device: torch.device, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Inside the `with`, the figures of a rank's GPU are served, where there are any to be had."""
    collector = gpu_collector(device)
    if collector:
        registry.register(collector)
    try:
        yield
    finally:
        if collector:
            registry.unregister(collector)


def gpu_collector(device: torch.device) -> GpuCollector | None:
    """What serves a device's figures; None where it is no GPU, or the library or its driver is not there."""
    if device.type != "cuda":
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = _handle(nvml, str(torch.cuda.get_device_properties(device).uuid))
    except Exception:  # not installed, no driver, or one of another version: a run is worth more than its metrics
        return None
    return GpuCollector(lambda: figures_of(nvml, handle))


def figures_of(nvml: Any, handle: Any) -> dict[str, float]:
    """What the library NVML says of a GPU, by the metrics' names; what it cannot say is left out."""
    questions: dict[str, Callable[[], float]] = {
        _USED.name: lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        _TOTAL.name: lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        _UTILIZATION.name: lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        _TEMPERATURE.name: lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    figures = {}
    for name, question in questions.items():
        try:
            figures[name] = float(question())
        except nvml.NVMLError:
            continue
    return figures


def _handle(nvml: Any, uuid: str) -> Any:
    """NVML's word for the GPU that CUDA knows by this number, whichever of the host's GPUs are visible here."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
