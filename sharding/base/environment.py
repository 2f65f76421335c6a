"""The environment variables that Reelscale reads, each in one place, with what it means.

All are read when they are asked for, and none when a module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# torch.distributed's names, which torchrun, deepspeed, Ray Train and launcher=none set for each rank of a run.
RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
LOCAL_RANK, LOCAL_WORLD_SIZE = "LOCAL_RANK", "LOCAL_WORLD_SIZE"  # of the ranks of one machine
MASTER_ADDR, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"  # where the ranks meet

# The interfaces by which gloo and NCCL exchange tensors; several may be named, with commas between.
GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"

THREADS = "OMP_NUM_THREADS"  # threads that a process computes with on a CPU
FOLLOWED = "REELSCALE_FOLLOWED"  # of a rank whose launcher reads the run's folder
RAY_JOB_STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"  # that Ray leaves a job which it has asked to stop
UNBUFFERED = "PYTHONUNBUFFERED"  # of a process whose lines are to come as it prints them
CACHE = "REELSCALE_CACHE"  # the folder of what one run measures for others

AWS_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
AWS_KEY_IDS = ("AWS_ACCESS_KEY_ID",)

_TORCHELASTIC = "TORCHELASTIC_"  # what torchrun's own variables begin with


def variable(name: str) -> str:
    """The value of a variable; "" where it is not set."""
    return os.environ.get(name, "")


@contextmanager
def variables_set(values: Mapping[str, str]) -> Iterator[None]:
    """Inside the `with`, variables of this process, and of those that it starts, have these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def adopt_variables(values: Mapping[str, str]) -> None:
    """Set variables of this process."""
    os.environ.update(values)


def is_rank() -> bool:
    """Whether a launcher started this process as a rank of a run."""
    return RANK in os.environ


def rank() -> int:
    """This process' number among the run's ranks; 0 outside of a launcher."""
    return int(os.environ.get(RANK, "0"))


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its run, or no rank: what one of the ranks does, it does."""
    return os.environ.get(RANK, "0") == "0"


def world_size() -> int | None:
    """The number of ranks that a launcher set for this process; None outside of one."""
    return int(os.environ[WORLD_SIZE]) if RANK in os.environ and WORLD_SIZE in os.environ else None


def local_rank() -> int:
    """This process' number among the ranks of its machine."""
    return int(os.environ.get(LOCAL_RANK, "0"))


def local_world_size() -> int:
    """The number of ranks on this machine; 1 where the launcher does not tell."""
    return int(os.environ.get(LOCAL_WORLD_SIZE) or os.environ.get("LOCAL_SIZE", "1"))  # the latter is deepspeed's


def meeting_place() -> str:
    """HOST:PORT where the ranks meet."""
    return f"{variable(MASTER_ADDR)}:{variable(MASTER_PORT)}"


def use_interface(name: str) -> None:
    """Have gloo and NCCL exchange tensors by a network interface, each unless the user has named one for it."""
    for variable_name in (GLOO_INTERFACE, NCCL_INTERFACE):
        os.environ.setdefault(variable_name, name)


def chosen_interface() -> str:
    """The first interface that gloo is to use; "" where none is named."""
    return variable(GLOO_INTERFACE).partition(",")[0]


def is_torchrun() -> bool:
    """Whether torchrun, of which each machine's ranks are the children, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def torchrun_hosts_store() -> bool:
    """Whether torchrun's agent serves the store at which the ranks meet; else the first rank does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def become_rank(rank: str, world_size: str, local_rank: str) -> None:
    """Say to torch.distributed which rank this process is."""
    os.environ.update({RANK: rank, WORLD_SIZE: world_size, LOCAL_RANK: local_rank})


def become_only_rank(port: int) -> None:
    """Make this process the only rank of its run."""
    os.environ.update({RANK: "0", WORLD_SIZE: "1", LOCAL_RANK: "0", MASTER_ADDR: "127.0.0.1", MASTER_PORT: str(port)})


@dataclass(frozen=True)
class SlurmTask:
    """What srun says of one of several tasks, in its own words; `missing`: the variables that name no meeting place."""

    number: str
    tasks: str
    local_number: str
    missing: tuple[str, ...]


def slurm_task() -> SlurmTask | None:
    """This process as one of several tasks of srun; None where it is none, or a launcher has made it a rank."""
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_ID" not in os.environ or RANK in os.environ:
        return None
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))
    if tasks == "1":
        return None
    missing = tuple(name for name in (MASTER_ADDR, MASTER_PORT) if name not in os.environ)
    return SlurmTask(os.environ["SLURM_PROCID"], tasks, os.environ.get("SLURM_LOCALID", "0"), missing)


def without_rank() -> dict[str, str]:
    """This process' environment for a child that is no rank."""
    ranks = (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE)
    return {name: value for name, value in os.environ.items() if name not in ranks}


def of_a_stage() -> dict[str, str]:
    """This process' environment for a child whose lines are read as they come."""
    return {**os.environ, UNBUFFERED: "1"}


def as_only_rank(port: int) -> dict[str, str]:
    """This process' environment for a child that is a run's only rank, on the device that this process has.

    Which that is the launcher's number of this rank on its machine says.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_TORCHELASTIC)}
    only = {RANK: "0", WORLD_SIZE: "1", LOCAL_WORLD_SIZE: "1", LOCAL_RANK: str(local_rank())}
    return inherited | only | {MASTER_ADDR: "127.0.0.1", MASTER_PORT: str(port)}


def is_followed() -> bool:
    """Whether this rank's launcher reads the run's folder, and shows its log."""
    return FOLLOWED in os.environ


def cache_folder() -> Path:
    """Where measurements are kept across runs: $REELSCALE_CACHE, else reelscale in $XDG_CACHE_HOME or ~/.cache."""
    if variable(CACHE):
        return Path(variable(CACHE))
    above = variable("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111, which raises without a home
    return Path(above) / "reelscale"


def data_folders() -> list[str]:
    """The user's folder for programs' data, and the system's where XDG_DATA_DIRS names some."""
    named = [folder for folder in variable("XDG_DATA_DIRS").split(":") if folder]
    return [variable("XDG_DATA_HOME") or "~/.local/share", *named]


def temporary_folder() -> str:
    """The user's folder for temporary files, or the name of the variable that sets it (for messages)."""
    return os.environ.get("TMPDIR", "TMPDIR")


def s3_endpoint() -> str | None:
    """The URL of the S3 service, where it is not AWS'."""
    return variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL") or None


def aws_variables() -> tuple[tuple[str, str], ...]:
    """All of AWS_*, sorted: whose credentials these are, and for which service."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


def ca_bundle() -> str | None:
    """The file of trusted certificate authorities that the user names for all HTTP requests."""
    return variable("REQUESTS_CA_BUNDLE") or None


def ray_address() -> str | None:
    """The Ray cluster to connect to; None: one of this machine alone is started."""
    return os.environ.get("RAY_ADDRESS")


RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def ray_token_file() -> Path:
    """The file in which Ray looks for the token by which a cluster knows its users."""
    return Path(variable(RAY_AUTH_TOKEN_PATH) or os.path.expanduser("~/.ray/auth_token"))  # noqa: PTH111, as above


def use_ray_cluster(address: str) -> None:
    """Have this command, and those that it starts, connect to the Ray cluster at HOST:PORT."""
    os.environ["RAY_ADDRESS"] = address
