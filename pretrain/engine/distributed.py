"""The world of ranks: this process' rank, the world size, and the few collectives that the trainer needs."""

import contextlib
import logging
import os
import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.network_interface import interface_address, interface_of, is_loopback, source_address
from sharding.base import environment
from sharding.base.errors import CommandFailed, UserError

log = logging.getLogger("reelscale")

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL error")
_REACHED_WITHIN = 30.0  # seconds
_PAUSE_SECONDS = 0.1  # between two looks into the store


class RankLost(CommandFailed):
    """A collective failed because another rank is gone."""


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

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """Every rank's vector of the same length: D → W D."""
        if self.size == 1:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row.contiguous())
        return torch.stack(rows)

    def hosts(self) -> list[str]:
        """The name of every rank's machine, as far as 64 bytes go."""
        name = socket.gethostname().encode()[:64]
        row = torch.zeros(64, dtype=torch.uint8)
        row[: len(name)] = torch.tensor(list(name), dtype=torch.uint8)
        rows = self.gather(row.to(self.device)).cpu()
        return [bytes(each.tolist()).rstrip(b"\0").decode(errors="replace") for each in rows]

    def broadcast_text(self, make: Callable[[], str], patience: timedelta = timedelta(hours=2)) -> str:
        """The text that `make` returns on rank 0, on every rank, which waits long for it."""
        if self.size == 1:
            return make()
        group = dist.new_group(backend="gloo", timeout=patience)
        text = torch.tensor(list(make().encode()) if self.rank == 0 else [], dtype=torch.uint8)
        length = torch.tensor(len(text))
        dist.broadcast(length, src=0, group=group)
        text = text if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, src=0, group=group)
        dist.destroy_process_group(group)
        return bytes(text.tolist()).decode()

    def broadcast(self, value: int) -> int:
        """Rank 0's integer, on every rank."""
        if self.size == 1:
            return value
        word = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(word, src=0)
        return int(word.item())

    @contextlib.contextmanager
    def host_maximum(self, patience: timedelta) -> Iterator[Callable[[int], int]]:
        """A function that returns the maximum of all ranks' integers, by the hosts: the devices may be what fails.

        It raises CommandFailed for a rank that does not call it within `patience`. Entered by all ranks.
        """
        if self.size == 1:
            yield lambda value: value
            return
        group = dist.new_group(backend="gloo", timeout=patience)

        def highest(value: int) -> int:
            word = torch.tensor(value)
            try:
                dist.all_reduce(word, dist.ReduceOp.MAX, group=group)
            except RuntimeError as error:
                reason = plain_reason(error)
                raise CommandFailed(f"training failed: another rank does not answer ({reason})") from error
            return int(word)

        yield highest
        dist.destroy_process_group(group)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def world_size_from_environment() -> int | None:
    """The world size a launcher (torchrun, deepspeed, srun) set for this process; None outside of one."""
    _adopt_slurm()
    return environment.world_size()


def _adopt_slurm() -> None:
    """Under srun with several tasks, speak torch.distributed's variables; a single task is a machine like others.

    MASTER_ADDR and MASTER_PORT stay the job script's. Raises UserError where it did not set them.
    """
    task = environment.slurm_task()
    if task is None:
        return
    if task.missing:
        raise UserError(
            f"srun started {task.tasks} tasks, and they do not know where to meet: {' and '.join(task.missing)} not "
            "set",
            f"task {task.number}",
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1) MASTER_PORT=29500',
        )
    environment.become_rank(task.number, task.tasks, task.local_number)


def start_world(timeout_seconds: float = 600.0, deterministic: bool = False, meet_seconds: float = 1800.0) -> World:
    """Join the process group that the environment names (one process if none), nccl on GPUs, gloo without.

    `deterministic`: operations of a GPU that give other bits each time are not used. On a CPU there are none.
    Raises CommandFailed if the ranks have not all come in `meet_seconds`; a collective may then take `timeout_seconds`.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first GPU operation runs
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs
    world_size = world_size_from_environment()
    cuda = enough_gpus(torch.cuda.device_count() if torch.cuda.is_available() else 0, environment.local_world_size())
    if not dist.is_initialized():
        if world_size is None:
            environment.become_only_rank(free_port())
        store = _meet(timedelta(seconds=meet_seconds))
        if (environment.world_size() or 1) > 1:
            _join_network(store, environment.rank(), environment.world_size() or 1)
        longest = timedelta(seconds=timeout_seconds)
        store.set_timeout(longest)
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(
            backend, store=store, rank=environment.rank(), world_size=environment.world_size() or 1, timeout=longest
        )
    cuda = cuda and dist.get_backend() == "nccl"
    # A scheduler may show each task its own GPU alone, as the first.
    number = environment.local_rank() % max(1, torch.cuda.device_count())
    device = torch.device("cuda", number) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic  # a run's shapes hardly change
    return World(dist.get_rank(), dist.get_world_size(), device)


def _meet(within: timedelta) -> dist.Store:  # type: ignore[name-defined]  # torch does not list it as exported
    """The store by which all ranks have met, at the first of them, or at torchrun, which keeps it for all starts.

    Each start has its part of it, where no former rank's address is.
    """
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=within))  # type: ignore[attr-defined]  # not listed
        start = _agree_on_start(store, environment.rank(), environment.world_size() or 1, within)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where, reason = environment.meeting_place(), plain_reason(error)
        raise CommandFailed(
            f"the {environment.world_size()} ranks of the run did not meet at {where} within "
            f"{within.total_seconds():g} s (rank {environment.rank()}: {reason}); look for those that did not start, "
            "or cannot reach it"
        ) from error
    return dist.PrefixStore(f"ranks {start}", store)  # type: ignore[attr-defined]  # not listed as exported either


def _agree_on_start(store: dist.Store, rank: int, size: int, within: timedelta) -> str:  # type: ignore[name-defined]
    """A name of this start of the ranks, the same on all of them and another than any before it in the store.

    The launcher has none: torchrun's count of restarts is each agent's own, and that of one started anew is 0. Rank 0
    makes the name; the others answer with a word of their own, and take the name once rank 0 repeats that word: what
    ranks before them left in the store does not hold it.
    Raises DistStoreError where they have not all answered within that time.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
        answers = store.multi_get([f"{own} {number}" for number in range(1, size)]) if size > 1 else []
        store.set(f"{own} all", " ".join(answer.decode() for answer in answers))
        return own
    deadline = time.monotonic() + within.total_seconds()
    while time.monotonic() < deadline:
        start = str(store.get("start").decode())
        store.set(f"{start} {rank}", own)
        if store.check([f"{start} all"]) and own in store.get(f"{start} all").decode().split():
            return start
        time.sleep(_PAUSE_SECONDS)
    raise dist.DistStoreError("rank 0 did not answer")


def _join_network(
    store: dist.Store,  # type: ignore[name-defined]  # torch does not list it as exported
    rank: int,
    size: int,
) -> None:
    """Have gloo and NCCL use the interface by which the ranks reach each other, and see that they do.

    It is that of the route to where they met; on the machine where that is, and where its name may mean loopback, to
    a rank elsewhere. Nothing is chosen where all ranks are on one machine, or the user has named an interface.
    Raises CommandFailed, on all ranks, where one does not reach the next.
    """
    own = "127.0.0.1"
    with contextlib.suppress(OSError):  # of a name that only the store's client understands
        own = source_address(environment.variable(environment.MASTER_ADDR))
    addresses = _exchange(store, "address", rank, size, own)
    elsewhere = [address for address in addresses if not is_loopback(address)]
    if not elsewhere:
        return
    if is_loopback(own):
        with contextlib.suppress(OSError):
            own = source_address(elsewhere[0])
    interface = None if is_loopback(own) else interface_of(own)
    if interface:
        environment.use_interface(interface)
    own = interface_address(environment.chosen_interface()) or own
    with socket.create_server((own, 0), family=socket.AF_INET6 if ":" in own else socket.AF_INET) as server:
        places = _exchange(store, "place", rank, size, f"{own} {server.getsockname()[1]}")
        neighbour = (rank + 1) % size
        host, port = places[neighbour].split()
        problem = ""
        try:
            socket.create_connection((host, int(port)), timeout=_REACHED_WITHIN).close()
        except OSError as error:
            problem = (
                f"rank {rank} on {socket.gethostname()} ({own}) does not reach rank {neighbour} at {host}: {error}"
            )
        problems = [each for each in _exchange(store, "problem", rank, size, problem) if each]
    if problems:
        store.set(f"heard {rank}", "")
        if rank == 0:  # the store ends with it
            store.multi_get([f"heard {number}" for number in range(size)])
        raise CommandFailed(
            f"{problems[0]}; ranks exchange tensors by TCP, on ports that the system chooses: let the machines' "
            f"firewalls pass it, or name the interface of the network that they share by {environment.GLOO_INTERFACE} "
            f"and {environment.NCCL_INTERFACE}"
        )


def _exchange(
    store: dist.Store,  # type: ignore[name-defined]  # torch does not list it as exported
    kind: str,
    rank: int,
    size: int,
    text: str,
) -> list[str]:
    """Every rank's text of a kind, on every rank, by the store where they met. A collective."""
    store.set(f"{kind} {rank}", text)
    return [each.decode() for each in store.multi_get([f"{kind} {number}" for number in range(size)])]


def enough_gpus(gpus: int, ranks: int) -> bool:
    """Whether each of so many ranks of this machine has a GPU of its own."""
    if 0 < gpus < ranks:
        log.warning("%d GPUs for %d ranks on this machine: training on the CPU; ranks=%d uses them", gpus, ranks, gpus)
    return gpus >= ranks


def plain_reason(error: BaseException) -> str:
    """Why torch's collectives or stores failed, in one line: without gloo's source file and its advice."""
    line = re.sub(r"\[/\S+:\d+\] ", "", str(error).partition("\n")[0])
    return line.partition(" This is typically caused by")[0].rstrip(".")


@contextlib.contextmanager
def names_lost_ranks() -> Iterator[None]:
    """Inside the `with`, a collective that fails because a rank is gone raises RankLost."""
    try:
        yield
    except RuntimeError as error:
        reason = plain_reason(error)
        if not any(words in reason for words in _LOST):
            raise
        raise RankLost(
            f"training failed: another rank is gone ({reason}); unless it tells an error of its own, the same command "
            "goes on from the last checkpoint"
        ) from error


def leave_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    """A TCP port free on loopback just now, of those that the system gives to no connection by itself meanwhile."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32768
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10000, lowest) if lowest > 12000 else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
