"""The peak a device is judged by, the share of it that training takes, and the memory it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.engine import mfu as peak
from pretrain.models.count import macs
from pretrain.models.zoo import ModelSettings, build_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA GH200 480GB", 989.5e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla V100-PCIE-32GB", 112e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
    ],
)
def test_gpus_are_known_by_the_names_their_driver_gives(name: str, half: float) -> None:
    found = peak.listed_peak(name)
    assert found is not None and found.half == half
    assert found.half > found.tf32 >= found.fp32


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA GeForce RTX 4090", "NVIDIA T400", "AMD Instinct MI300X", ""])
def test_an_unknown_gpu_has_no_figures(name: str) -> None:
    assert peak.listed_peak(name) is None


def test_a_listed_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    cuda = torch.device("cuda", 0)
    assert peak.peak_flops(cuda, half=True) == 312e12
    for allowed, expected in ((True, 156e12), (False, 19.5e12)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert peak.peak_flops(cuda, half=False) == expected


@pytest.mark.parametrize("half", [False, True])
def test_a_cpu_has_no_peak_to_be_judged_by(half: bool) -> None:
    assert peak.peak_flops(CPU, half) is None


def test_a_gpu_that_is_not_listed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Q1")
    monkeypatch.setattr(peak, "product_flops", lambda device, half: 7e12)
    assert peak.peak_flops(torch.device("cuda", 0), half=True) == 7e12


def test_products_are_measured_where_they_are_asked_for() -> None:
    assert 1e8 < peak.product_flops(CPU, half=False) < 1e14


def test_mfu_of_the_papers_network() -> None:
    """R(2+1)D-34 at 16 × 112²: 76.2 GMACs, so 457 GFLOP a clip trained."""
    with torch.device("meta"):
        model = build_model(ModelSettings(depth=34), 400, 16)
    per_clip = macs(model, 16, 112, 112)
    assert 6 * per_clip == pytest.approx(457e9, rel=0.005)
    assert peak.mfu(1000, per_clip, 989.5e12, 1) == pytest.approx(1000 * 457e9 / 989.5e12, rel=0.005)
    assert peak.mfu(4000, per_clip, 989.5e12, 4) == pytest.approx(peak.mfu(1000, per_clip, 989.5e12, 1))


@pytest.mark.slow
def test_memory_of_a_process_grows_with_what_it_holds() -> None:
    """Of one of its own: a machine takes pages back from one that has lain idle with many of them."""
    program = """
import torch
from pretrain.resilience.memory import memory_in_use
before = memory_in_use(torch.device("cpu"))
held = torch.ones(64 * 2**20, dtype=torch.uint8)
print((memory_in_use(torch.device("cpu")) - before) / held.numel())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 2
