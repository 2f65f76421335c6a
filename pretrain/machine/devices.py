"""What torch, CUDA, Triton and DeepSpeed are on this machine, each tried by the smallest work that shows it."""

from __future__ import annotations

import ctypes
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pretrain.engine.deepspeed_import import import_deepspeed

_SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it; `problem`: why a tiny network does not run on it, "" if it does."""

    name: str
    memory_bytes: int
    problem: str


@dataclass(frozen=True)
class Cuda:
    """torch's CUDA: the version it was built for and the newest that the driver takes ("" where there is none)."""

    build: str
    driver: str
    problem: str  # why torch does not start CUDA; "" if it does, or was built without
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class DeepSpeedTools:
    """DeepSpeed's version, and which of the tools that it and Triton compile with are missing."""

    version: str
    missing: tuple[str, ...]


def try_cuda() -> Cuda:
    """torch's CUDA and its GPUs, on each of which a convolution is computed forward and backward."""
    build = torch.version.cuda or ""
    if not build:
        return Cuda("", _driver_version(), "", ())
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return Cuda(build, _driver_version(), str(error)[:_SHOWN], ())
    gpus = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        gpus.append(Gpu(properties.name, properties.total_memory, _kernel_problem(torch.device("cuda", number))))
    return Cuda(build, _driver_version(), "", tuple(gpus))


def try_triton() -> str:
    """Triton's version, after one of our kernels has given on the first GPU what torch gives.

    Raises ImportError, or what Triton raises where it cannot compile; ArithmeticError if the results differ.
    """
    import importlib.metadata

    from pretrain.models.compute.row_kernels import moments

    rows = torch.randn(4096, 24, device="cuda:0", generator=torch.Generator("cuda:0").manual_seed(0))
    mean, variance = moments(rows, torch.float32)
    if not (torch.allclose(mean, rows.mean(0), atol=1e-4) and torch.allclose(variance, rows.var(0, False), atol=1e-3)):
        raise ArithmeticError("a Triton kernel computes other means and variances than torch")
    return importlib.metadata.version("triton")


def try_deepspeed() -> DeepSpeedTools:
    """DeepSpeed, imported as training does, and the tools of its operations. Raises what the import raises."""
    deepspeed = import_deepspeed(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    missing = [program for program in ("g++", "ninja") if shutil.which(program) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("Python.h")
    return DeepSpeedTools(str(deepspeed.__version__), tuple(missing))


def _kernel_problem(device: torch.device) -> str:
    """Why a tiny convolution does not run on a device; "" if it does."""
    try:
        network = nn.Conv2d(2, 4, 3, bias=False).to(device)
        network(torch.ones(1, 2, 8, 8, device=device)).sum().backward()
        gradient = network.weight.grad
        assert gradient is not None
        return "" if bool((gradient == 36).all()) else "a convolution of ones has wrong gradients"
    except RuntimeError as error:
        return str(error).partition("\n")[0][:_SHOWN]


def _driver_version() -> str:
    """The newest CUDA that the driver takes, as "12.8", by the driver's own library; "" where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return ""
    except (OSError, AttributeError):
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
