"""A Slurm of one node on loopback, with its own munge, folder and ports; it leaves the system's alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pretrain.engine.distributed import free_port
from tests.support.commands import gone

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_LONGEST = 400.0
_CONFIGURATION = """\
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
GresTypes=gpu
CommunicationParameters=NoInAddrAny
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; "" where one can."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started by root alone"


class Slurm:
    """A running Slurm. `variables`: by which its programs find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """What a program of Slurm's prints."""
        done = subprocess.run(
            words, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol shows of a job."""
        words = self.ask("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, condition: Callable[[], Any], said: Callable[[], str]) -> Any:
        """Wait until the condition holds; returns what it gave. `said`: for the message where it never does."""
        deadline = time.monotonic() + _LONGEST
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.2)
        logs = "".join((self.folder / f"{name}.log").read_text()[-2000:] for name in ("slurmctld", "slurmd"))
        raise AssertionError(f"waited in vain\n{said()}\n{logs}")


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """A Slurm in `folder` for as long as the `with` lasts; its jobs end with it."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    slurm = Slurm(folder)
    values = {"folder": folder, "host": socket.gethostname().partition(".")[0]}
    ports = {"controller_port": free_port(), "node_port": free_port()}
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(**values, **ports))
    (folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    paths = {name: f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed")}
    try:
        slurm.ask(
            "munged", "--force", f"--key-file={key}", f"--socket={folder}/munge/socket", paths["pid"], paths["log"],
            paths["seed"],
        )  # fmt: skip
        slurm.ask("slurmctld", "-f", str(folder / "slurm.conf"))
        slurm.ask("slurmd", "-f", str(folder / "slurm.conf"))
        slurm.until(lambda: "idle" in slurm.ask("sinfo", "--noheader", "--format=%T"), lambda: "no node is idle")
        yield slurm
    finally:
        with suppress(AssertionError, subprocess.TimeoutExpired, OSError):
            slurm.ask("scancel", "--partition=main", "--signal=KILL", "--full")
            slurm.ask("scancel", "--partition=main")
        for path in (folder / "slurmd.pid", folder / "slurmctld.pid", folder / "munge" / "pid"):
            with suppress(OSError, ValueError):
                _end(int(path.read_text()))


def _end(pid: int) -> None:
    """End a daemon by its id, at last by force."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if not gone([pid]):
            os.kill(pid, signal.SIGKILL)
