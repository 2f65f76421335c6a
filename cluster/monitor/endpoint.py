"""The endpoint of one process: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, from start to end."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from cluster.monitor.access import Access, open_access
from cluster.monitor.page import Source
from cluster.monitor.ports import listen, reached_at
from cluster.monitor.settings import MonitorSettings
from cluster.monitor.targets import ports_of_others, remove_target, target_file, targets_folder, write_target
from pretrain.resilience.progress import Progress
from sharding.base.errors import UserError
from sharding.base.printable import visible

log = logging.getLogger("reelscale")


@dataclass(frozen=True)
class Served:
    """Where a process is served. `line`: that in words."""

    url: str
    line: str


@contextmanager
def endpoint(
    settings: MonitorSettings, kind: str, folder: str, progress: Progress, rank: int = 0, number: int = 0
) -> Iterator[Served | None]:
    """Inside the `with`, this process is served, and a file says so to Prometheus; None where that cannot be.

    `folder`: the run's, or the store's path or URL. `number`: of this process among those of the run on its machine.
    A failure is logged: a run is worth more than its metrics. What cannot be protected is not served. The file stays
    where an error that is not the user's ends the `with`, as it does when the process is killed: Prometheus misses it.
    """
    source = Source(kind, PurePosixPath(folder.rstrip("/")).name or kind, rank, socket.gethostname())
    file = target_file(targets_folder(settings.targets), source, folder)
    try:
        access = open_access(settings)
        listener, is_other = listen(settings, number, ports_of_others(file, reached_at(settings, 0).rpartition(":")[0]))
    except UserError as error:
        log.warning("no metrics: %s (%s)", error.what, error.where)
        yield None
        return
    except OSError as error:
        log.warning("no metrics: %s cannot be served (%s)", visible(settings.address), error.strerror or error)
        yield None
        return
    from cluster.monitor.answers import Answers  # with aiohttp, which a command without an endpoint does not need
    from cluster.monitor.server import HttpServer

    port = listener.getsockname()[1]
    place, scheme = reached_at(settings, port), "https" if access.tls else "http"
    url = f"{scheme}://{place}/metrics"
    server = HttpServer(listener, Answers(source, settings.ready, access, progress).answer, access.tls)
    server.start()
    try:
        write_target(file, source, place, scheme, folder)
    except OSError as error:
        log.warning("Prometheus does not find %s by itself: %s cannot be written (%s)", url, file, error.strerror)
    ended = False
    try:
        yield Served(url, _line(settings, url, number, is_other, access))
        ended = True
    except BaseException as error:
        ended = isinstance(error, UserError) or not isinstance(error, Exception)
        raise
    finally:
        server.stop()
        if ended:
            remove_target(file, source)


def _line(settings: MonitorSettings, url: str, number: int, is_other: bool, access: Access) -> str:
    line = f"metrics at {url}"
    if is_other:
        line += f" (port {settings.port + number % settings.ports} is taken)"
    if not settings.is_local and access.expected and not access.tls:
        line += "; the secret that readers show crosses the network in the clear: set monitor.tls"
    return line
