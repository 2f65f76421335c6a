"""A training run on hosts that a DeepSpeed hostfile names: settings in, commands of deepspeed or torchrun out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from sharding.base.errors import UserError
from sharding.base.settings import Settings, unit

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.:-]+)\s+slots=(?P<slots>\d+)")
_NAME = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*")

# torch's agents else share a store whose address only the first meeting is told: one who comes later waits in vain.
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class Host(NamedTuple):
    """A host by the name at which ssh and the other hosts reach it, and how many ranks it takes."""

    name: str
    slots: int


def _hosts(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    names = [host.name for host in hosts]
    for host in hosts:
        if not _NAME.fullmatch(host.name):
            raise ValueError(f"{host.name!r} is no name of a host")
        if not 1 <= host.slots <= 1024:
            raise ValueError(f"{host.name} has {host.slots} slots; from 1 to 1,024 can be")
        if names.count(host.name) > 1:
            raise ValueError(f"{host.name} is there twice")
    return hosts


class HostfileSettings(Settings):
    """Hosts, and the launcher that starts the ranks on them."""

    hosts: Annotated[tuple[Host, ...], Field(min_length=1, description="hosts and their slots"), AfterValidator(_hosts)]
    launcher: Annotated[
        Literal["torchrun", "deepspeed"],
        Field(description="torchrun: an agent a host, by ssh, which starts failed ranks anew; deepspeed: by pdsh"),
    ] = "torchrun"
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port of the first host, where the ranks meet")] = 29500
    restarts: Annotated[
        int, Field(json_schema_extra=unit("restarts"), ge=0, le=1000, description="restarts of failed ranks (torchrun)")
    ] = 3
    fewest_nodes: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("nodes"),
            ge=1,
            description="hosts that suffice to train; unless named: all (torchrun)",
        ),
    ] = None
    save_seconds: Annotated[
        int,
        Field(
            json_schema_extra=unit("seconds"), ge=1, le=86400, description="that a stopping rank may take (torchrun)"
        ),
    ] = 300
    ssh: Annotated[str, Field(min_length=1, description="the ssh command, options included (torchrun)")] = "ssh"

    @model_validator(mode="after")
    def _enough_hosts(self) -> Self:
        if self.fewest_nodes and self.fewest_nodes > len(self.hosts):
            raise ValueError(f"fewest_nodes={self.fewest_nodes} are more than the {len(self.hosts)} hosts")
        return self


def read_hostfile(text: str, where: str) -> tuple[Host, ...]:
    """The hosts of a hostfile: `NAME slots=N` lines; `#` begins a comment. Raises UserError for another line."""
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"no host: {line}", f"{where}, line {number}", "write NAME slots=N, e.g. node1 slots=8")
        hosts.append(Host(match["name"], int(match["slots"])))
    return tuple(hosts)


def hostfile_text(hosts: Sequence[Host]) -> str:
    """The hosts as a hostfile."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def deepspeed_command(settings: HostfileSettings, hostfile: str, python: str, words: Sequence[str]) -> list[str]:
    """The command that starts all ranks from one host; `words`: the module that each rank runs, and its arguments."""
    first = settings.hosts[0].name
    meeting = ["--master_addr", first, "--master_port", str(settings.port)]
    runner = [python, "-m", "deepspeed.launcher.runner", "--hostfile", hostfile]
    return [*runner, *meeting, "--module", "--no_local_rank", *words]


def torchrun_commands(settings: HostfileSettings, python: str, words: Sequence[str]) -> list[list[str]]:
    """A command for each host. The first one's agent serves the rendezvous, so that it is the one that must not go."""
    hosts, first = settings.hosts, settings.hosts[0].name
    nodes = f"{settings.fewest_nodes}:{len(hosts)}" if settings.fewest_nodes else str(len(hosts))
    shared = [
        *("env", f"{_OWN_STORE}=1", python, "-m", "torch.distributed.run"),
        *("--nnodes", nodes, "--max-restarts", str(settings.restarts)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{settings.port}", "--rdzv-id", "reelscale"),
        *("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"),
        *("--shutdown-timeout", str(settings.save_seconds)),
    ]
    return [
        [*shared, *_role(host, first), "--nproc-per-node", str(host.slots), "-m", *words] for host in settings.hosts
    ]


def _role(host: Host, first: str) -> list[str]:
    """Whether a host serves the rendezvous, said outright: torchrun would ask the names' resolver."""
    return ["--rdzv-conf", f"is_host={'true' if host.name == first else 'false'}", "--local-addr", host.name]


def by_ssh(settings: HostfileSettings, host: Host, command: Sequence[str], folder: str) -> list[str]:
    """The command as ssh runs it on a host, in `folder`; its terminal is what ends it there when ssh ends here."""
    return [*shlex.split(settings.ssh), "-tt", host.name, f"cd {shlex.quote(folder)} && exec {shlex.join(command)}"]
