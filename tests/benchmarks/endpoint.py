"""Benchmark: what scrapes of a process' metrics cost its training.

python -m tests.benchmarks.endpoint [--quick] [--rate N] [--pairs N] [--anew] [--out FILE]

A small network is trained in this process, by one thread where there is no GPU, and another process scrapes it as 40
readers, by connections that they keep, or, with --anew, by a new one each time. Windows in which it scrapes this
process take turns with those in which it scrapes a third one: the readers' own work, which disturbs training on a
machine of few cores, is in both. The share lost is the median over pairs of neighbours; less than 1 % is the aim for
200 scrapes a second, of which the endpoint lets most wait. What its threads took of a core is told, too, which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import torch

import pretrain.metrics
from cluster.monitor.endpoint import endpoint
from cluster.monitor.settings import MonitorSettings
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.resilience.progress import Progress

READERS = 40
AIM = 0.01


class Other:
    """Another process on the last core, which scrapes endpoints in windows, or has one itself."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.endpoint", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.sched_setaffinity(self._process.pid, {max(os.sched_getaffinity(self._process.pid))})

    def scrape(self, port: int, seconds: float) -> None:
        """Begin to scrape for so long."""
        assert self._process.stdin
        print(port, seconds, file=self._process.stdin, flush=True)

    def number(self) -> int:
        """How many pages came in the window that is over; of an endpoint, its port."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def served() -> Iterator[int]:
    """The port of this process' endpoint."""
    with tempfile.TemporaryDirectory() as targets:
        settings = MonitorSettings(port=0, targets=targets)
        with endpoint(settings, "pretrain", "/runs/bench", Progress("step")) as place:
            assert place
            yield int(urlsplit(place.url).port or 0)


def scrape_windows(rate: float, anew: bool) -> None:
    """Of the other process: scrape the port, and for as many seconds, as each line of standard input says."""
    for line in sys.stdin:
        with ThreadPoolExecutor(READERS) as pool:
            port, seconds = int(line.split()[0]), float(line.split()[1])
            counts = [pool.submit(scrape, port, rate / READERS, anew, seconds, number) for number in range(READERS)]
            print(sum(each.result() for each in counts), flush=True)


def scrape(port: int, rate: float, anew: bool, seconds: float, number: int) -> int:
    """Scrape so often a second for so long; returns how many pages came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begin, count = time.perf_counter(), 0
    due = number / READERS / rate
    while due < seconds:
        time.sleep(max(0.0, begin + due - time.perf_counter()))
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert connection.getresponse().read().endswith(b"# EOF\n")
        if anew:
            connection.close()
        count += 1
        due = max(due + 1 / rate, time.perf_counter() - begin - 1 / rate)
    connection.close()
    return count


class Training:
    """A small network, trained on the same clips."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        settings = ModelSettings(name="r2plus1d", depth=10, width=0.125 if quick else 0.25)
        self._model = build_model(settings, classes=7, frames=8, size=32).to(device).train()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.001)
        self._clips = torch.rand(4, 3, 8, 32, 32, device=device)
        self._labels = torch.tensor([0, 1, 2, 3], device=device)

    def steps(self, seconds: float) -> float:
        """Steps a second in so many seconds of training."""
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            self._optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self._model(self._clips), self._labels)
            loss.backward()
            self._optimizer.step()
            pretrain.metrics.LOSS.set(loss.item())
            steps += 1
        return steps / (time.perf_counter() - begin)


def endpoint_cpu(training: threading.Thread) -> float:
    """CPU seconds that the process' threads have taken so far, but for the one that trains and torch's."""
    own = {thread.native_id for thread in threading.enumerate() if thread is not training}
    return sum(each.user_time + each.system_time for each in psutil.Process().threads() if each.id in own)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """The figures of one run of the benchmark."""
    device, cores = torch.device("cuda" if torch.cuda.is_available() else "cpu"), sorted(os.sched_getaffinity(0))
    scraper, idle = Other("--scrape", f"--rate={arguments.rate}", *["--anew"] * arguments.anew), Other("--serve")
    os.sched_setaffinity(0, cores[:-1] or cores)
    training, window = Training(device, arguments.quick), 1.5 if arguments.quick else 5.0
    rows, scrapes, cpu = list[tuple[float, float]](), 0, 0.0
    with served() as own_port:
        other_port = idle.number()
        training.steps(window)
        for pair in range(arguments.pairs):
            rates = {}
            for is_scraped in (True, False) if pair % 2 else (False, True):
                before = endpoint_cpu(threading.main_thread())
                scraper.scrape(own_port if is_scraped else other_port, window)
                rates[is_scraped] = training.steps(window)
                pages = scraper.number()
                if is_scraped:
                    cpu += endpoint_cpu(threading.main_thread()) - before
                    scrapes += pages
            rows.append((rates[False], rates[True]))
    scraper.end()
    idle.end()
    seconds = window * arguments.pairs
    lost = [1 - scraped / alone for alone, scraped in rows]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
        "connections": "new ones" if arguments.anew else "kept",
        "scrapes_per_second": scrapes / seconds,
        "steps_per_second_alone": statistics.median(alone for alone, _ in rows),
        "steps_per_second_scraped": statistics.median(scraped for _, scraped in rows),
        "share_lost": statistics.median(lost),
        "share_lost_of_pairs": [round(each, 4) for each in sorted(lost)],
        "endpoint_share_of_a_core": cpu / seconds,
        "endpoint_seconds_per_scrape": cpu / max(1, scrapes),
    }


def main() -> None:
    """Print what scrapes cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter windows")
    parser.add_argument("--rate", type=float, default=200.0, help="scrapes a second")
    parser.add_argument("--pairs", type=int, default=8, help="windows with scrapes, and as many without")
    parser.add_argument("--anew", action="store_true", help="a connection a scrape")
    parser.add_argument("--scrape", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.scrape:
        scrape_windows(arguments.rate, arguments.anew)
        return
    if arguments.serve:
        with served() as port:
            print(port, flush=True)
            sys.stdin.read()
        return
    figures = measure(arguments)
    for name, value in figures.items():
        print(f"{name:28} {value:.5g}" if isinstance(value, float) else f"{name:28} {value}")
    print(f"{'under the aim of 1 %' if float(str(figures['share_lost'])) < AIM else 'over the aim of 1 %'}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
