"""What the system grants a process: shared memory, open files, memory."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.jobs.doctor.devices import gpu_files
from cluster.jobs.doctor.finding import Verdict, ok, warning, wrong
from cluster.jobs.doctor.versions import installed_version

GIB = 2**30
_SHM = Path("/dev/shm")
_SHM_WANTED = GIB  # NCCL's buffers between GPUs, and Ray's object store
_SHM_REMEDY = (
    "mount -o remount,size=8G /dev/shm; a container: docker run --shm-size=8g, in Kubernetes an emptyDir of medium "
    "Memory at /dev/shm (reelscale launch kuberay has it)"
)
_FILES_NEEDED, _FILES_WANTED, _FILES_OF_RAY, _FILES_RAISED = 256, 1024, 4096, 65536
_MEMORY_NEEDED, _MEMORY_WANTED = 1 * GIB, 4 * GIB  # of a rank with its loader
_NO_LIMIT = 2**60  # version 1 writes "no limit" as the largest number of pages


@dataclass(frozen=True)
class Memory:
    """Bytes: of this machine, what of it is free, and what the control group allows (None: all) and has in use."""

    total: int
    available: int
    limit: int | None = None
    used: int = 0


def check_shared_memory() -> Verdict:
    """Whether /dev/shm is large enough for those that use it; the loader's batches do without it."""
    try:
        os.close(os.memfd_create("reelscale-doctor"))
    except OSError as error:
        what = f"memfd_create, in which the loader's workers hand over batches, is refused: {error.strerror}"
        return wrong(what, "let the sandbox (seccomp, gVisor) pass memfd_create")
    try:
        size = shutil.disk_usage(_SHM).total if os.access(_SHM, os.W_OK) else None
    except OSError:
        size = None
    return shared_memory_verdict(size, len(gpu_files()), installed_version("ray") is not None)


def check_open_files() -> Verdict:
    """Whether a process may have enough files and connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return open_files_verdict(soft, hard, installed_version("ray") is not None)


def check_memory() -> Verdict:
    """Whether the machine, and the control group that this process is in, leave enough memory to train."""
    machine = psutil.virtual_memory()
    group = cgroup_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    limit, used = group or (None, 0)
    return memory_verdict(Memory(machine.total, machine.available, limit, used), max(1, len(gpu_files())))


def shared_memory_verdict(size: int | None, gpus: int, ray: bool) -> Verdict:
    """Of the bytes of /dev/shm, None where it is missing or cannot be written to, and who would use it."""
    users = " and ".join([*(["NCCL between GPUs"] if gpus > 1 else []), *(["Ray's object store"] if ray else [])])
    if not users:
        shown = "no /dev/shm" if size is None else f"/dev/shm has {_size(size)}"
        return ok(f"{shown}; nothing here needs it: the loader hands over batches without it")
    if size is None:
        what = f"/dev/shm is missing, or cannot be written to; {users} would lie in it"
        return (wrong if gpus > 1 else warning)(what, _SHM_REMEDY)
    if size < _SHM_WANTED:
        return warning(f"/dev/shm has only {_size(size)}, too little for {users}", _SHM_REMEDY)
    return ok(f"/dev/shm has {_size(size)}, for {users}")


def open_files_verdict(soft: int, hard: int, ray: bool) -> Verdict:
    """Of the limits of open files of a process (-1: none), and whether Ray is here, which opens many."""
    wanted = _FILES_OF_RAY if ray else _FILES_WANTED
    shown = "without a limit" if soft == -1 else f"{soft:,} at a time for a process"
    if soft == -1 or soft >= wanted:
        return ok(shown)
    remedy = f"ulimit -n {_FILES_RAISED if hard == -1 else min(_FILES_RAISED, hard)} before the command"
    if hard != -1 and hard < wanted:
        remedy = (
            f"the limit cannot be raised here beyond {hard:,}: raise it in /etc/security/limits.conf (nofile), "
            f"systemd's LimitNOFILE, or by docker run --ulimit nofile={_FILES_RAISED}"
        )
    if soft < _FILES_NEEDED:
        return wrong(f"{shown}: too few for the loader's workers and their connections", remedy)
    return warning(f"{shown}; {wanted:,} leave room for many workers{' and for Ray' if ray else ''}", remedy)


def memory_verdict(memory: Memory, ranks: int) -> Verdict:
    """Of the memory that is free, for so many ranks on this machine."""
    free, shown = memory.available, f"{_size(memory.available)} of {_size(memory.total)} are free"
    if memory.limit is not None and memory.limit < memory.total:
        free = min(free, max(0, memory.limit - memory.used))
        shown = f"{_size(free)} are free of {_size(memory.limit)} that this control group may use"
    remedy = "free some, or raise the container's or the job's memory (docker -m, Slurm --mem, a pod's limits.memory)"
    if free < _MEMORY_NEEDED * ranks:
        return wrong(f"{shown}: too little for {ranks} ranks with their loaders", remedy)
    if free < _MEMORY_WANTED * ranks:
        return warning(f"{shown}: little for {ranks} ranks with their loaders", remedy)
    return ok(shown)


def cgroup_memory(membership: Path, mounts: Path) -> tuple[int, int] | None:
    """(bytes allowed, bytes in use) of the tightest control group of this process; None where none has a limit.

    Both versions of control groups are read; what the kernel caches of files counts as free, as it gives it back.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits = [limit for line in lines for limit in _limits(line, mounts)]
    return min(limits, key=lambda each: each[0] - each[1], default=None)


def _limits(line: str, mounts: Path) -> Iterator[tuple[int, int]]:
    """(bytes allowed, bytes in use) of the groups that a line of /proc/self/cgroup names, from the inmost outwards."""
    number, controllers, path = line.split(":", 2)
    if number == "0":
        root, names = mounts, ("memory.max", "memory.current", "inactive_file")
    elif "memory" in controllers.split(","):
        root, names = mounts / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
        return
    inmost = root / path.strip("/")
    for folder in (inmost, *inmost.parents):
        limit, used = _number(folder / names[0]), _number(folder / names[1])
        if limit is not None and used is not None and limit < _NO_LIMIT:
            yield limit, used - _cached(folder / "memory.stat", names[2])
        if folder == root:
            return


def _number(file: Path) -> int | None:
    """The whole number in a file; None where there is none ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cached(file: Path, name: str) -> int:
    """Bytes of a line of memory.stat; 0 where it is missing."""
    try:
        pairs = (line.split() for line in file.read_text().splitlines())
        return next((int(pair[1]) for pair in pairs if pair[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _size(count: int) -> str:
    """Bytes in words."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"
