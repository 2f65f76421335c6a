"""Hostfiles as DeepSpeed reads them, and the commands of deepspeed, torchrun and ssh."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from cluster.launch.hostfile import (
    Host,
    HostfileSettings,
    by_ssh,
    deepspeed_command,
    hostfile_text,
    read_hostfile,
    torchrun_commands,
)
from sharding.base.errors import UserError
from sharding.base.settings import validate

HOSTS = (Host("node1", 8), Host("node2", 4))
WORDS = ["cluster.cli", "pretrain", "/shared/my recipe.yaml", "loss={kind: softmax}"]


def settings(**values: Any) -> HostfileSettings:
    return validate(HostfileSettings, {"hosts": HOSTS} | values, "the options")


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    text = "# ours\nnode1 slots=8\n\nnode2   slots=4  # the old one\n"
    assert read_hostfile(text, "hostfile") == HOSTS
    (tmp_path / "hostfile").write_text(hostfile_text(HOSTS))
    assert dict(fetch_hostfile(str(tmp_path / "hostfile"))) == {"node1": 8, "node2": 4}


@pytest.mark.parametrize("line", ["node1", "node1 slots=", "node1 slots=eight", "node1 slots=8 more", "$(rm) slots=1"])
def test_a_line_that_names_no_host(line: str) -> None:
    with pytest.raises(UserError) as refused:
        read_hostfile(f"node0 slots=1\n{line}\n", "hosts")
    assert refused.value.where == "hosts, line 2" and line in refused.value.what


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hosts": ()}, "hosts: found ()"),
        ({"hosts": (("node1", 0),)}, "node1 has 0 slots"),
        ({"hosts": (("node1", 1), ("node1", 1))}, "node1 is there twice"),
        ({"hosts": (("-oProxyCommand=x", 1),)}, "is no name of a host"),
        ({"fewest_nodes": 3}, "more than the 2 hosts"),
    ],
)
def test_hosts_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        settings(**values)
    assert words in refused.value.what


def test_torchruns_options_are_torchruns(tmp_path: Path) -> None:
    from torch.distributed.run import config_from_args, parse_args

    first, second = torchrun_commands(settings(fewest_nodes=1, save_seconds=900), "python", WORDS)
    for command, slots, host in ((first, 8, True), (second, 4, False)):
        start = command.index("torch.distributed.run")
        assert command[:start] == ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", "python", "-m"]
        config, _, script = config_from_args(parse_args(command[start + 1 :]))
        assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 2, slots)
        assert config.rdzv_endpoint == "node1:29500" and config.rdzv_configs["is_host"] == str(host).lower()
        assert config.shutdown_timeout == 900 and "SIGUSR1" in config.signals_to_handle
        assert script[-len(WORDS) :] == WORDS


def test_deepspeeds_options_are_deepspeeds(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import parse_args

    command = deepspeed_command(settings(launcher="deepspeed", port=1234), "hosts file", "python", WORDS)
    read = parse_args(command[3:])
    assert (read.hostfile, read.master_addr, read.master_port) == ("hosts file", "node1", 1234)
    assert read.module and read.no_local_rank and [read.user_script, *read.user_args] == WORDS


def test_ssh_gets_one_line_that_a_shell_reads_back() -> None:
    command = ["python", "it's $HOME", "a b"]
    words = by_ssh(settings(ssh="ssh -p 2222"), HOSTS[0], command, "/my folder")
    assert words[:5] == ["ssh", "-p", "2222", "-tt", "node1"]
    assert shlex.split(words[5]) == ["cd", "/my folder", "&&", "exec", *command]
