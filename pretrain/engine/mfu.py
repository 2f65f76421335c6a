"""Model FLOPs utilisation, MFU: the peak FLOP/s of a device, and which share of it training uses."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Floating-point operations a second of dense matrix products, by their precision."""

    half: float
    tf32: float
    fp32: float


PEAKS: dict[str, Peak] = {
    "GB200": Peak(2500e12, 1250e12, 80e12),
    "B200": Peak(2250e12, 1125e12, 75e12),
    "H200 NVL": Peak(835.5e12, 417.5e12, 60e12),
    "H200": Peak(989.5e12, 494.5e12, 67e12),
    "GH200": Peak(989.5e12, 494.5e12, 67e12),
    "H100 NVL": Peak(835.5e12, 417.5e12, 60e12),
    "H100 PCIe": Peak(756.5e12, 378e12, 51e12),
    "H100": Peak(989.5e12, 494.5e12, 67e12),
    "A100": Peak(312e12, 156e12, 19.5e12),
    "L40S": Peak(362e12, 183e12, 91.6e12),
    "L4": Peak(121e12, 60e12, 30.3e12),
    "V100-PCIE": Peak(112e12, 14e12, 14e12),
    "V100": Peak(125e12, 15.7e12, 15.7e12),
    "T4": Peak(65e12, 8.1e12, 8.1e12),
}
"""By words of the name the driver gives, the most special first. Source: NVIDIA's data sheets, which state the half
and TF32 figures of H100 and later for sparse matrices: half of them is dense."""


def peak_flops(device: torch.device, half: bool) -> float | None:
    """Dense matrix-product FLOP/s of the device in bf16 or fp16 (`half`) or fp32 (TF32 where convolutions may use it).

    Of the data sheet; of a GPU that is not in the table as measured now. None of a CPU: it has no such figure, and what
    is measured there is what its other work and its clock leave at that moment, which differs threefold between runs.
    """
    if device.type == "cpu":
        return None
    peak = listed_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is None:
        return product_flops(device, half)
    if half:
        return peak.half
    return peak.tf32 if torch.backends.cudnn.allow_tf32 else peak.fp32


def listed_peak(name: str) -> Peak | None:
    """The data sheet's figures of a GPU by the name the driver gives it, None of an unknown one."""
    words = name.split()
    for known, peak in PEAKS.items():
        wanted = known.split()
        if all(any(word == part or word.startswith(f"{part}-") for word in words) for part in wanted):
            return peak
    return None


def product_flops(device: torch.device, half: bool, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of the large matrix products that fit into so many seconds, here and now; at least two."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if half else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, done, deadline = float("inf"), 0, time.perf_counter() + seconds
    while time.perf_counter() < deadline or done < 2:  # the first one warms up
        _wait(device)
        begin = time.perf_counter()
        left @ right
        _wait(device)
        best, done = min(best, time.perf_counter() - begin), done + 1
    return 2 * side**3 / best


def mfu(clips_per_second: float, macs_per_clip: float, peak: float, ranks: int) -> float:
    """The share of all ranks' peak that training the network takes, at so many clips a second over all ranks.

    Two operations a multiply-accumulate; the backward pass counts twice the forward pass (PaLM, arXiv 2204.02311,
    appendix B). What is computed again to save memory does not count, what frozen layers leave out does.
    """
    return clips_per_second * 3 * 2 * macs_per_clip / (peak * ranks)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
