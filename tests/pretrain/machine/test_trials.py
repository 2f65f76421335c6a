"""The trials of this machine, as it is: without a GPU, with two ranks over loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.machine.all_reduce_trial import try_all_reduce
from pretrain.machine.devices import try_cuda, try_deepspeed, try_triton
from tests.support.gpu import needs_gpu

WITHIN = 200.0


@pytest.mark.slow
def test_ranks_sum_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    trial = try_all_reduce("", WITHIN)
    assert trial.problem == "" and trial.ranks >= 2 and trial.seconds > 0
    assert trial.interface == "lo (127.0.0.1)" and trial.backend in ("gloo", "nccl")


def test_an_interface_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none9")
    assert "none9 has no address" in try_all_reduce("", WITHIN).problem


def test_deepspeed_and_missing_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = try_deepspeed()
    assert tools.version.startswith("0.19") and "g++" in tools.missing


def test_a_torch_without_cuda() -> None:
    cuda = try_cuda()
    assert cuda.build == (torch.version.cuda or "")
    assert bool(cuda.gpus) == torch.cuda.is_available()


@needs_gpu("test_a_torch_without_cuda")
def test_a_kernel_on_every_gpu() -> None:
    cuda = try_cuda()
    assert [gpu.problem for gpu in cuda.gpus] == [""] * torch.cuda.device_count() and cuda.driver
    assert try_triton()
