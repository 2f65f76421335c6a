"""The network: ports for metrics, and how ranks of this machine exchange tensors."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.jobs.doctor.finding import Verdict, ok, warning, wrong
from cluster.jobs.doctor.probe import tried_by_name
from cluster.monitor.settings import MonitorSettings
from sharding.base import environment

if TYPE_CHECKING:
    from pretrain.machine.all_reduce_trial import AllReduceTrial

_LOOPBACK = "127.0.0.1"
_SECONDS = 120.0
_START_SECONDS = 60.0  # that importing torch may take beside it


def check_ports(port: int | None) -> Verdict:
    """Whether metrics can be served at a port of loopback, or at one of the next (0: at any; None: as by default)."""
    default = MonitorSettings()
    port = default.port if port is None else port
    candidates = range(port, min(port + default.ports, 65536)) if port else (0,)
    refusals: list[int] = []
    for each in candidates:
        number = _refusal(each)
        if number == 0:
            break
        refusals.append(number)
        if number != errno.EADDRINUSE:
            break
    return ports_verdict(port, refusals, len(candidates))


def check_all_reduce(address: str | None) -> Verdict:
    """Whether ranks of this machine sum a tensor, over the interface by which the others' machines are reached.

    `address`: of a Ray cluster, where there is one.
    """
    target = environment.variable(environment.MASTER_ADDR) or host_of(address or "")
    trial = tried_by_name(
        "pretrain.machine.all_reduce_trial", "try_all_reduce", target, _SECONDS, seconds=_SECONDS + _START_SECONDS
    )
    return all_reduce_verdict(trial)


def ports_verdict(port: int, refusals: Sequence[int], tried: int) -> Verdict:
    """Of why the first of `tried` ports from this one could not be had (errno); the next could, if any is left."""
    if not refusals:
        return ok(f"{_LOOPBACK}:{port} is free for metrics" if port else "any free port serves metrics")
    if refusals[-1] == errno.EADDRINUSE:
        last = port + tried - 1
        if len(refusals) == tried:
            return wrong(f"ports {port} to {last} of {_LOOPBACK} are all taken", "name another by monitor.port=")
        what = f"port {port} is taken: metrics will be at {port + len(refusals)}"
        return warning(what, f"see who has it: ss -ltnp 'sport = :{port}'; or name another by monitor.port=")
    reason = os.strerror(refusals[-1])
    if refusals[-1] == errno.EACCES:
        return wrong(f"port {port} is refused: {reason}", "name one from 1024 on by monitor.port=")
    return wrong(f"{_LOOPBACK}:{port} cannot be bound: {reason}", "bring the loopback interface up: ip link set lo up")


def all_reduce_verdict(trial: AllReduceTrial) -> Verdict:
    """Of ranks that exchanged a tensor, or failed to."""
    what = f"{trial.ranks} ranks by {trial.backend} over {trial.interface}"
    if not trial.problem:
        return ok(f"{what}: sum 4 MiB in {trial.seconds * 1000:.1f} ms")
    remedy = (
        f"name the interface of the network that machines share by {environment.GLOO_INTERFACE} and "
        f"{environment.NCCL_INTERFACE}, and let the firewall pass it"
    )
    if trial.backend == "nccl":
        remedy += "; NCCL_DEBUG=INFO says more, nvidia-smi topo -m how the GPUs are joined"
    return wrong(f"{what}: {trial.problem}", remedy)


def host_of(address: str) -> str:
    """The host of a Ray cluster's address; "" for a word by which Ray looks on this machine."""
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


def _refusal(port: int) -> int:
    """Why a port of loopback cannot be bound, as an errno; 0 if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            return error.errno or errno.EIO
    return 0
