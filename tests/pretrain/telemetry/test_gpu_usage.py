"""What NVML says of a GPU, by a library that stands in for it: a machine of tests has none."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from pretrain.telemetry.gpu_usage import watching_gpu
from tests.support.gpu import needs_gpu

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    """As the library's."""


def nvml(**changes: Any) -> SimpleNamespace:
    """The library of a host with one GPU, called GPU-1234."""

    def by_uuid(uuid: str) -> str:
        if uuid != "GPU-1234":
            raise NVMLError
        return uuid

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 * 2**30, total=80 * 2**30),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=97, memory=50),
        nvmlDeviceGetTemperature=lambda handle, sensor: 61,
        **changes,
    )


def refusing(*arguments: object) -> None:
    raise NVMLError("not supported")


@pytest.fixture()
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))


def served(device: torch.device) -> dict[str, float]:
    registry = CollectorRegistry()
    with watching_gpu(device, registry):
        for _ in range(1000):  # a busy machine may not answer within the moment that a scrape waits
            lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
            if lines:
                break
    assert generate_latest(registry) == b""
    return {name: float(value) for name, value in (line.split() for line in lines)}


def test_memory_utilisation_and_temperature(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert served(GPU) == {
        "reelscale_gpu_memory_used_bytes": 3 * 2**30,
        "reelscale_gpu_memory_total_bytes": 80 * 2**30,
        "reelscale_gpu_utilization_ratio": 0.97,
        "reelscale_gpu_temperature_celsius": 61,
    }


def test_what_a_gpu_does_not_say_is_absent(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    library = nvml()
    library.nvmlDeviceGetUtilizationRates = refusing
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert "reelscale_gpu_utilization_ratio" not in served(GPU) and len(served(GPU)) == 3


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "absent", "cpu"])
def test_without_library_driver_or_gpu_there_is_nothing(
    broken: str, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library: Any = nvml()
    if broken.startswith("nvml"):
        setattr(library, broken, refusing)
    monkeypatch.setitem(sys.modules, "pynvml", None if broken == "absent" else library)
    registry = CollectorRegistry()
    with watching_gpu(torch.device("cpu") if broken == "cpu" else GPU, registry):
        assert generate_latest(registry) == b""


@needs_gpu("test_memory_utilisation_and_temperature, by a library that stands in for NVML")
def test_a_gpu_of_this_machine() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    figures = served(GPU)
    assert 0 < figures["reelscale_gpu_memory_used_bytes"] <= figures["reelscale_gpu_memory_total_bytes"]
