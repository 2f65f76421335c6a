"""A fleet as live endpoints: each process of it serves its figures of now, and has its target file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pretrain.metrics
import pretrain.telemetry.gpu_usage
import sharding.metrics
import sharding.telemetry.build
import sharding.telemetry.host
from sharding.telemetry.declare import DECLARED
from tests.cluster.monitor.prometheus.fleet import Fleet, always, growing

DECLARING = (pretrain.metrics, pretrain.telemetry.gpu_usage, sharding.metrics, sharding.telemetry)
AGE = 300.0  # seconds for which all has been going on when the first is asked


def complete(fleet: Fleet, prefixes: tuple[str, ...], **own: Any) -> Fleet:
    """A fleet with a series of every declared metric that begins so and has none of this process yet."""
    for name, each in DECLARED.items():
        if not name.startswith(prefixes) or fleet.has(name, **own) or name in ALARMING:
            continue
        labels = {**own, **dict.fromkeys(each.labels, "any")}
        if each.kind == "histogram":
            fleet.add(f"{name}_count", growing(2), **labels)
            fleet.add(f"{name}_sum", growing(1), **labels)
            fleet.add(f"{name}_bucket", growing(1.9), **labels, le="0.5")
            fleet.add(f"{name}_bucket", growing(2), **labels, le="+Inf")
        else:
            fleet.add(name, growing(1) if each.kind == "counter" else always(1), **labels)
    return fleet


ALARMING = {"reelscale_train_straggler_rank", "reelscale_disk_free_bytes", "reelscale_disk_size_bytes"}


class Process:
    """One endpoint, which ends in order or is killed."""

    def __init__(self, fleet: Fleet, instance: str, targets: Path, begin: float) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = fleet.exposed(instance, AGE + time.time() - begin, begin - AGE)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.place = f"127.0.0.1:{self._server.server_port}"
        self._file = targets / f"{instance.replace(':', '-')}.json"
        self._file.write_text(json.dumps([{"targets": [self.place], "labels": {"job": "reelscale", "kind": "any"}}]))

    def kill(self) -> None:
        """Nothing answers any more, and the target file stays."""
        self._server.shutdown()
        self._server.server_close()

    def end(self) -> None:
        """As a process that ends in order."""
        self._file.unlink()
        self.kill()


@contextmanager
def serving(fleet: Fleet, targets: Path) -> Iterator[dict[str, Process]]:
    """The fleet's processes, by the instance that they are called in it."""
    begin = time.time()
    processes = {instance: Process(fleet, instance, targets, begin) for instance in fleet.instances()}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
