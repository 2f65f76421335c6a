"""What the host has left, as it is served."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sharding.telemetry import host


def figures(registry: CollectorRegistry) -> dict[str, float]:
    lines = (line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_memory_and_disks_are_served_inside_the_with(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with host.watching_host({"run": tmp_path, "cache": tmp_path / "not" / "made yet"}, registry):
        while len(served := figures(registry)) < 5:  # a busy machine may not answer within the moment
            time.sleep(0.01)
    size = shutil.disk_usage(tmp_path).total
    for folder in ("run", "cache"):
        assert served[f'reelscale_disk_size_bytes{{folder="{folder}"}}'] == size
        assert 0 <= served[f'reelscale_disk_free_bytes{{folder="{folder}"}}'] <= size
    assert 0 < served["reelscale_host_memory_available_bytes"] <= psutil.virtual_memory().total
    assert figures(registry) == {}


def test_a_disk_that_hangs_is_absent_and_the_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, go, plain = tmp_path / "far", threading.Event(), shutil.disk_usage

    def hanging(path: Path) -> Any:
        if path == far:
            go.wait(60)
        return plain(path)

    monkeypatch.setattr(shutil, "disk_usage", hanging)
    registry = CollectorRegistry()
    with host.watching_host({"run": far, "cache": tmp_path}, registry):
        while len(served := figures(registry)) < 3:
            time.sleep(0.01)
    go.set()
    assert sorted(served) == [
        'reelscale_disk_free_bytes{folder="cache"}',
        'reelscale_disk_size_bytes{folder="cache"}',
        "reelscale_host_memory_available_bytes",
    ]
