"""All checks of the machine, one after the other: each stands alone, and none can keep the others from theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.jobs.doctor import clock, devices, folders, limits, network, ray_cluster, store, versions, video
from cluster.jobs.doctor.finding import Finding, Verdict
from cluster.jobs.doctor.probe import TrialFailed, one_line
from cluster.launch.signals import raise_if_interrupted
from sharding.base import environment
from sharding.base.errors import UserError

_INSTALL = "install it anew: pip install -c constraints.txt torch setuptools, then pip install -c constraints.txt -e ."
_INSTALL_RAY = "install it anew: pip install -c constraints.txt -e '.[ray]'; without it: launcher=none"
_REMEDY = "mend what it names; the other checks stand for themselves"


@dataclass(frozen=True)
class Check:
    """One check: its name, what does it, and the remedy where that fails in a way that it has no words for."""

    name: str
    run: Callable[[], Verdict]
    remedy: str = _REMEDY


def all_checks(store_url: str | None, port: int | None, run_folder: str) -> list[Check]:
    """The checks in the order in which they are made: those that take no time first.

    The Ray cluster is that of RAY_ADDRESS.
    """
    return [
        Check("python", versions.check_python, _INSTALL),
        Check("torch", versions.check_torch, _INSTALL),
        Check("libraries", versions.check_libraries, _INSTALL),
        Check("open files", limits.check_open_files),
        Check("memory", limits.check_memory),
        Check("shared memory", limits.check_shared_memory),
        Check("temporary folder", folders.check_temporary_folder),
        Check("run folder", lambda: folders.check_run_folder(run_folder)),
        Check("cache folder", folders.check_cache_folder),
        Check("ports", lambda: network.check_ports(port)),
        Check("clock", clock.check_clock),
        Check("video", video.check_video, video.REMEDY),
        Check("store", lambda: store.check_store(store_url)),
        Check("store's clock", lambda: store.check_store_clock(store_url)),
        Check("gpus", devices.check_gpus, _INSTALL),
        Check("triton", devices.check_triton, "install the Triton of this torch, g++ and python3-dev"),
        Check("deepspeed", devices.check_deepspeed, _INSTALL),
        Check("all-reduce", lambda: network.check_all_reduce(environment.ray_address())),
        Check("ray", ray_cluster.check_ray, _INSTALL_RAY),
        Check("ray cluster", ray_cluster.check_ray_cluster),
    ]


def findings(checks: Sequence[Check], on_start: Callable[[str], None] = lambda _: None) -> Iterator[Finding]:
    """What each check has to say, as it is done; `on_start` is called with its name before.

    An error of a check, whichever it is, is its finding.
    """
    for check in checks:
        raise_if_interrupted()
        on_start(check.name)
        yield _finding(check)


def _finding(check: Check) -> Finding:
    try:
        return check.run().of(check.name)
    except UserError as error:
        return Finding(check.name, "wrong", f"{error.what} ({error.where})", error.remedy)
    except TrialFailed as error:
        return Finding(check.name, "wrong", str(error), check.remedy)
    except Exception as error:
        return Finding(check.name, "wrong", one_line(error), check.remedy)
