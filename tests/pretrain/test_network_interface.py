"""Which interface leads to another machine, and how ranks on several machines reach each other by it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import psutil
import pytest

from pretrain.network_interface import (
    interface_address,
    interface_of,
    is_loopback,
    network_interface,
    source_address,
)
from tests.support.nodes.hosts import Host, Names, hosts, require_hosts

RANK = """
import os, sys, torch
from pretrain.engine.distributed import start_world
from cluster.terminal.output import end_process, exit_code_of
def rank():
    world = start_world(60.0, meet_seconds=60.0)
    ones = torch.ones(1)
    world.sum_(ones)
    world.barrier()
    print("sum", ones.item(), "by", os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME"))
    return 0
end_process(exit_code_of(rank))
"""
SCRIPT_OF_ROUTES = """
from pretrain.network_interface import network_interface
print(network_interface("node0"), network_interface("node1"), network_interface("nobody"))
"""


def _ranks(machines: Sequence[Host], master: str, variables: Mapping[str, str]) -> list[tuple[int, str]]:
    """Exit code and output of a rank on each host."""
    place = {**variables, "WORLD_SIZE": str(len(machines)), "MASTER_ADDR": master, "MASTER_PORT": "29500"}
    started = []
    for rank, host in enumerate(machines):
        with (host.disk / "output").open("wb") as output:
            started.append(host.popen([sys.executable, "-c", RANK], {**place, "RANK": str(rank)}, output))
    codes = [process.wait(200) for process in started]
    return [(code, (host.disk / "output").read_text()) for code, host in zip(codes, machines, strict=True)]


def test_loopback_leads_to_no_other_machine() -> None:
    assert network_interface("127.0.0.1") is None and network_interface("localhost") is None
    assert network_interface("no-such-host.invalid") is None
    assert is_loopback(source_address("127.0.1.1")) and is_loopback("::1") and not is_loopback("fe80::1%eth0")


def test_an_interface_is_found_by_its_address_and_the_other_way_round() -> None:
    assert interface_of("203.0.113.77") is None and interface_address("no-such-interface") is None
    for name, entries in psutil.net_if_addrs().items():
        address = interface_address(name)
        if address:
            assert address in [entry.address for entry in entries] and interface_of(address) is not None


def test_the_route_to_another_host_names_the_interface() -> None:
    require_hosts()
    with hosts(2, "debian") as machines:
        script = [sys.executable, "-c", SCRIPT_OF_ROUTES]
        assert machines[0].run(script).split() == ["None", "eth0", "None"]
        assert machines[1].run(script).split() == ["eth0", "None", "None"]


@pytest.mark.slow
@pytest.mark.parametrize("names", ["debian", "loopback", "network"])
@pytest.mark.parametrize("by_name", [False, True])
def test_ranks_on_two_hosts_meet_whatever_their_names_resolve_to(names: Names, by_name: bool) -> None:
    require_hosts()
    with hosts(2, names) as machines:
        for code, output in _ranks(machines, machines[0].name if by_name else machines[0].address, {}):
            assert code == 0 and "sum 2.0 by eth0 eth0" in output, output


@pytest.mark.slow
def test_an_interface_that_does_not_reach_the_others_is_one_message_on_every_rank() -> None:
    require_hosts()
    with hosts(2) as machines:
        ends = _ranks(machines, machines[0].address, {"GLOO_SOCKET_IFNAME": "lo"})
    for code, output in ends:
        messages = [line for line in output.splitlines() if line.startswith("reelscale: ")]
        assert code == 1 and "Traceback" not in output and "gloo" not in output.replace("GLOO", ""), output
        assert len(messages) == 1 and " does not reach rank " in messages[0], output
        assert "(127.0.0.1)" in messages[0] and "GLOO_SOCKET_IFNAME" in messages[0], output
