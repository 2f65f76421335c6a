"""A Prometheus server of this machine, on loopback, which ends with the command that started it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.monitor.prometheus.monitoring_folder import MonitoringFolder
from sharding.base.errors import CommandFailed, UserError
from sharding.base.parent_death import dying_with

ADDRESS = "127.0.0.1"
_START_SECONDS = 120.0  # reading back what was scraped before takes a while
_END_SECONDS = 30.0


def server_command(program: str, folder: MonitoringFolder, port: int) -> list[str]:
    """The command line of a server that reads this folder; errors and warnings alone are logged."""
    return [
        program,
        f"--config.file={folder.config}",
        f"--storage.tsdb.path={folder.data}",
        f"--web.listen-address={ADDRESS}:{port}",
        "--log.level=warn",
    ]


def find_program(named: str | None) -> str:
    """The path of Prometheus: the one that is named, else the one that is installed. Raises UserError."""
    program = shutil.which(named or "prometheus")
    if program:
        return program
    raise UserError(
        "there is no such program" if named else "Prometheus is not installed",
        f"--prometheus {named}" if named else "PATH",
        "install it (Debian: apt-get install prometheus), name it by --prometheus PATH, or use --write-only and "
        "start one elsewhere",
    )


def require_free(port: int) -> None:
    """Raise UserError if something listens at this port of this machine."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(
                f"Prometheus cannot serve there: {error.strerror}",
                f"{ADDRESS}:{port}",
                "name another port by --port, or end what listens there",
            ) from error


@contextmanager
def running_server(program: str, folder: MonitoringFolder, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ready, while the `with` lasts; asked to end at its end, and killed if it does not.

    Its log goes to standard error. Raises CommandFailed if it ends before it is ready.
    """
    process = subprocess.Popen(
        dying_with(os.getpid(), server_command(program, folder, port)), stdin=subprocess.DEVNULL, cwd=folder.path
    )
    try:
        _wait_until_ready(process, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_to_its_end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a server to end, which it does by itself only for an error: CommandFailed."""
    raise CommandFailed(f"prometheus ended with exit code {process.wait()}; its lines above say why")


def loopback_url(port: int) -> str:
    """The URL of this machine's server."""
    return f"http://{ADDRESS}:{port}"


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            run_to_its_end(process)
        try:
            with urllib.request.urlopen(f"{loopback_url(port)}/-/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise CommandFailed(f"prometheus was not ready within {_START_SECONDS:.0f} s")
