"""Endpoints of this process, and how they are asked."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from cluster.monitor.endpoint import Served, endpoint
from cluster.monitor.settings import MonitorSettings
from pretrain.resilience.progress import Progress


class Answer:
    """What an endpoint answered."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        self.status, self.headers, self.text = status, headers, text


def ask(served: Served | str, path: str = "/metrics", tls: ssl.SSLContext | None = None, **headers: str) -> Answer:
    """GET a path of an endpoint."""
    url = served if isinstance(served, str) else served.url
    request = urllib.request.Request(url.removesuffix("/metrics") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60, context=tls) as answer:
            return Answer(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read().decode())


class Clock:
    """A clock that a test sets."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture()
def clock() -> Clock:
    return Clock()


@pytest.fixture()
def progress(clock: Clock) -> Progress:
    return Progress("step", clock)


@pytest.fixture()
def served(progress: Progress, tmp_path: Path) -> Iterator[Served]:
    """An endpoint of rank 3 of the run `a run`."""
    settings = MonitorSettings(port=0, targets=str(tmp_path / "targets"))
    with endpoint(settings, "pretrain", "/runs/a run", progress, rank=3) as served:
        assert served
        yield served


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """An authority for certificates, which only these tests trust."""
    return trustme.CA()
