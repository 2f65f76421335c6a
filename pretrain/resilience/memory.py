"""How much memory training takes where it computes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_in_use(device: torch.device) -> float:
    """Bytes: of a GPU, the most that torch has reserved there so far; on a CPU, what this process holds now.

    nan where the kernel does not tell it.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return float("nan")
