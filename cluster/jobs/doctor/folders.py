"""The folders that commands write to: room on their disks, and the length of the path of Ray's sockets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cluster.jobs.doctor.finding import Verdict, ok, warning, wrong
from cluster.launch.on_ray.folder import ROOM, fitting_folder, wanted_folder
from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.user_paths import absolute, require_writable

_NEEDED, _WANTED = 2**30, 10 * 2**30  # bytes: a checkpoint or two of R(2+1)D-34, and a run's with its log
_INODES = 1000


def check_run_folder(folder: str) -> Verdict:
    """Whether a run's folder can be written to, with room for checkpoints."""
    return _checked(absolute(folder), "name another folder with run=, or free the disk")


def check_cache_folder() -> Verdict:
    """Whether the folder of what one run measures for others can be written to."""
    folder = str(environment.cache_folder().absolute())
    return _checked(folder, f"name another folder by {environment.CACHE}, or free the disk")


def check_temporary_folder() -> Verdict:
    """Whether the folder for temporary files can be written to, and its path leaves room for Ray's sockets."""
    wanted = wanted_folder()
    verdict = sockets_verdict(wanted, fitting_folder())
    if verdict.state == "wrong":
        return verdict
    written = _checked(wanted, "name another folder by TMPDIR, or free the disk")
    return verdict if written.state == "ok" else written


def sockets_verdict(wanted: str, chosen: str | None) -> Verdict:
    """Of the folder that Ray would take for its session, and the one it is given; None: no folder fits."""
    length = len(os.fsencode(wanted))
    if chosen == wanted:
        return ok(f"{wanted}, {length} bytes long: Ray's sockets have room up to {ROOM}")
    remedy = f"set TMPDIR, or RAY_TMPDIR for Ray alone, to a folder of at most {ROOM} bytes that can be written to"
    why = f"{wanted} is {length} bytes long, too long for Ray's sockets" if length > ROOM else f"{wanted} is not usable"
    if chosen is None:
        return wrong(f"{why}, and so is any other", remedy)
    return warning(f"{why}: its session goes to {chosen}/ray", remedy)


def room_verdict(folder: str, free: int, inodes: int, remedy: str) -> Verdict:
    """Of a folder's disk: bytes and files (-1: it does not count them) that it has room for."""
    shown = f"{folder}: {free / 2**30:,.1f} GiB free"
    if 0 <= inodes < _INODES:
        return wrong(f"{folder}: room for only {inodes} more files", remedy)
    if free < _NEEDED:
        return wrong(f"{shown}, less than a checkpoint may take", remedy)
    return warning(f"{shown}, little for a run's checkpoints", remedy) if free < _WANTED else ok(shown)


def _checked(folder: str, remedy: str) -> Verdict:
    """Of a folder that need not be there yet."""
    try:
        require_writable(Path(folder), folder)
    except UserError as error:
        return wrong(error.what, remedy)
    place = next(each for each in (Path(folder), *Path(folder).parents) if each.exists())
    disk = os.statvfs(place)
    return room_verdict(folder, shutil.disk_usage(place).free, disk.f_favail if disk.f_files else -1, remedy)
