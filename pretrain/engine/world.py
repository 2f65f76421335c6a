"""This process among its fellows: rank, size and the few collectives that the trainer needs."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """rank of size processes; device is where this rank computes."""

    rank: int
    size: int
    device: torch.device

    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks get the same answer."""
        if self.size == 1:
            return flag
        word = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
        return bool(word.item())

    def broadcast(self, value: int) -> int:
        """Rank 0's integer, on every rank."""
        if self.size == 1:
            return value
        word = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(word, src=0)
        return int(word.item())

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def world_size_from_environment() -> int | None:
    """The world size a launcher (torchrun, deepspeed, srun) set for this process; None outside of one."""
    _adopt_slurm()
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def _adopt_slurm() -> None:
    """Under srun, speak torch.distributed's variables; MASTER_ADDR and MASTER_PORT stay the job script's."""
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "MASTER_ADDR" not in os.environ:
            return
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ.get("SLURM_NTASKS", "1")
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")


def start_world(timeout_seconds: float = 600.0) -> World:
    """Join the process group that the environment names (one process if none), nccl on GPUs, gloo without."""
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        if world_size_from_environment() is None:
            os.environ.update(
                RANK="0",
                WORLD_SIZE="1",
                LOCAL_RANK="0",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(free_port()),
            )
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    """A TCP port free on loopback just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
