"""A small all-reduce between ranks of this machine, as training does one a step: by NCCL on GPUs, else by gloo."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import cast

import torch
import torch.distributed as dist

from pretrain.engine.distributed import plain_reason
from pretrain.network_interface import FAR_AWAY, interface_address, network_interface
from sharding.base import environment
from sharding.base.child_process import end_children, start_connected

_LOOPBACK = "lo"
_NUMBERS = 2**20  # float32: 4 MiB


@dataclass(frozen=True)
class AllReduceTrial:
    """How ranks exchanged tensors: by which library and interface, how many, and why it failed ("": it did not)."""

    backend: str
    interface: str
    ranks: int
    problem: str
    seconds: float  # of one all-reduce of 4 MiB


def try_all_reduce(target: str, within: float) -> AllReduceTrial:
    """All ranks of this machine, one a GPU and at least two, sum a tensor over the interface that leads to `target`.

    `target`: a host that ranks elsewhere would meet at; "": the rest of the world. Killed after `within` seconds.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend, ranks = ("nccl", gpus) if gpus > 1 else ("gloo", 2)
    interface = environment.chosen_interface() or network_interface(target or FAR_AWAY[socket.AF_INET]) or _LOOPBACK
    address = interface_address(interface)
    if address is None:
        return AllReduceTrial(backend, interface, ranks, f"the interface {interface} has no address here", 0.0)
    environment.adopt_variables({environment.GLOO_INTERFACE: interface, environment.NCCL_INTERFACE: interface})
    with tempfile.TemporaryDirectory(prefix="reelscale-") as folder:
        children = []
        try:
            for rank in range(ranks):
                child, pipe = start_connected(__name__, "serve_rank", stderr=subprocess.DEVNULL)
                children.append((child, pipe))
                pipe.send((backend, rank, ranks, f"{folder}/meet", within))
            answers = _answers([pipe for _, pipe in children], within)
        finally:
            end_children([child for child, _ in children])
    problems = [f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if isinstance(answer, str)]
    seconds = max((answer for answer in answers if isinstance(answer, float)), default=0.0)
    return AllReduceTrial(backend, f"{interface} ({address})", ranks, "; ".join(problems[:2]), seconds)


def serve_rank(handle: int) -> None:
    """One rank: answers with the seconds of an all-reduce, or with what went wrong."""
    with Connection(handle) as pipe:
        backend, rank, ranks, meeting_file, within = pipe.recv()
        try:
            pipe.send(_all_reduced(backend, rank, ranks, meeting_file, within))
        except Exception as error:
            pipe.send(plain_reason(error) or type(error).__name__)


def _answers(pipes: list[Connection], within: float) -> list[float | str]:
    """What each rank answers; of one that does not, why."""
    end, answers = time.monotonic() + within, dict[Connection, float | str]()
    while len(answers) < len(pipes) and time.monotonic() < end:
        for pipe in cast(list[Connection], wait([each for each in pipes if each not in answers], timeout=1.0)):
            try:
                answers[pipe] = pipe.recv()
            except (EOFError, ConnectionError):
                answers[pipe] = "it died"
    return [answers.get(pipe, f"no answer within {within:.0f} s") for pipe in pipes]


def _all_reduced(backend: str, rank: int, ranks: int, meeting_file: str, within: float) -> float:
    """Seconds of an all-reduce, the first left out. Raises RuntimeError where it fails, or sums wrongly."""
    store = dist.FileStore(meeting_file, ranks)  # type: ignore[attr-defined]  # not listed as exported
    limit = timedelta(seconds=within)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=limit)
    for _ in range(2):
        tensor = torch.full((_NUMBERS,), float(rank + 1), device=device)
        began = time.monotonic()
        dist.all_reduce(tensor)
        total = float(tensor.sum())
        seconds = time.monotonic() - began
        if total != _NUMBERS * ranks * (ranks + 1) / 2:
            raise RuntimeError("the sum over all ranks is wrong")
    dist.barrier()
    return seconds
