"""CPU seconds, memory and parents of running processes, from the kernel's /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU seconds of all threads so far (to 10 ms), and bytes of resident memory, shared memory included."""

    cpu_seconds: float
    resident: int


def usage_of(pid: int) -> Usage:
    """The usage of one process. Raises ProcessLookupError if it is gone."""
    fields = _stat(pid)
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE)


def started_by(pid: int) -> dict[int, Usage]:
    """The usage of each running child process of `pid`, by its id."""
    usages = {}
    for number in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            if int(_stat(number)[1]) == pid:
                usages[number] = usage_of(number)
        except ProcessLookupError:
            continue
    return usages


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat after the name, which may hold anything: state, parent and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(pid) from error
