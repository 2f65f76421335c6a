"""The devices that training computes on: torch's CUDA and GPUs, Triton, DeepSpeed and its compilers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.jobs.doctor.finding import Verdict, ok, skipped, warning, wrong
from cluster.jobs.doctor.probe import tried_by_name

if TYPE_CHECKING:
    from pretrain.machine.devices import Cuda, DeepSpeedTools

_TRIALS = "pretrain.machine.devices"  # imports torch, which may be what fails
_SECONDS = 180.0  # that importing torch and starting CUDA may take on a slow disk
_PACKAGES = {"g++": "g++", "ninja": "ninja-build", "Python.h": "python3-dev"}  # Debian's


def check_gpus() -> Verdict:
    """Whether a tiny network runs on every GPU."""
    return gpus_verdict(tried_by_name(_TRIALS, "try_cuda", seconds=_SECONDS), gpu_files())


def check_triton() -> Verdict:
    """Whether a Triton kernel runs on the first GPU."""
    if not gpu_files():
        return skipped("no GPU here: torch's own operations do what its kernels would")
    return ok(f"triton {tried_by_name(_TRIALS, 'try_triton', seconds=_SECONDS)}: a kernel computes what torch does")


def check_deepspeed() -> Verdict:
    """Whether DeepSpeed can be imported, and finds what it compiles with."""
    return deepspeed_verdict(tried_by_name(_TRIALS, "try_deepspeed", seconds=_SECONDS))


def gpu_files() -> list[str]:
    """The device files of this machine's NVIDIA GPUs, as far as this process sees them; no library is asked."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))


def gpus_verdict(cuda: Cuda, files: Sequence[str]) -> Verdict:
    """Of what torch says of CUDA, and the GPUs' device files."""
    if not cuda.build:
        if not files:
            return skipped("no GPU here: training runs on the CPU")
        what = f"{len(files)} GPUs are here, but this torch was built for the CPU alone"
        return warning(what, "install torch's build for CUDA: pytorch.org/get-started names the index")
    if cuda.problem or (files and not cuda.gpus):
        return _not_started(cuda, files)
    if not cuda.gpus:
        return skipped(f"no GPU here (torch is built for CUDA {cuda.build}): training runs on the CPU")
    broken = [f"GPU {number} ({gpu.name}): {gpu.problem}" for number, gpu in enumerate(cuda.gpus) if gpu.problem]
    if broken:
        remedy = "see nvidia-smi and dmesg; a GPU that torch has no kernels for needs another build of torch"
        return wrong("; ".join(broken), f"{remedy}; CUDA_VISIBLE_DEVICES leaves a GPU out")
    names = sorted({f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in cuda.gpus})
    shown = f"{len(cuda.gpus)} × {' and '.join(names)}"
    return ok(f"{shown}: a kernel runs on each; CUDA {cuda.build}, the driver takes {cuda.driver or 'an unknown one'}")


def _not_started(cuda: Cuda, files: Sequence[str]) -> Verdict:
    """Of a torch built for CUDA that sees no GPU."""
    if not files and not cuda.driver:
        return skipped(f"no GPU and no driver here (torch is built for CUDA {cuda.build}): training runs on the CPU")
    why = cuda.problem or "it sees none of them"
    what = (
        f"torch cannot use the {len(files)} GPUs: {why} (CUDA {cuda.build}; the driver takes {cuda.driver or 'none'})"
    )
    if not cuda.driver:
        return wrong(what, "install NVIDIA's driver, or start the container with --gpus all")
    if _numbers(cuda.driver)[:1] < _numbers(cuda.build)[:1]:
        return wrong(what, f"update NVIDIA's driver, or install a torch built for CUDA {cuda.driver} or older")
    return wrong(what, "see nvidia-smi; check CUDA_VISIBLE_DEVICES and the permissions of /dev/nvidia*")


def deepspeed_verdict(tools: DeepSpeedTools) -> Verdict:
    """Of DeepSpeed's version and the tools that are missing."""
    if not tools.missing:
        return ok(f"deepspeed {tools.version}; g++, ninja and Python's headers are here")
    what = f"deepspeed {tools.version}; missing: {', '.join(tools.missing)}, without which neither its operations on a "
    packages = " ".join(_PACKAGES[each] for each in tools.missing)
    return warning(f"{what}CPU (optimizer offload) nor Triton's kernels compile", f"apt-get install {packages}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
