"""Real runs of two ranks under the real Prometheus: each fault fires its alert and no other, within two minutes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.monitor.prometheus.monitoring_folder import write_folder
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.monitor.prometheus.server import loopback_url, running_server
from tests.cluster.monitor.prometheus.test_real_server import PROMETHEUS, ask, until
from tests.support.commands import ROOT
from tests.support.s3 import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        PROMETHEUS is None, reason="no prometheus (Debian's package); what holds without it: test_expressions.py"
    ),
]
WITHIN = 120.0  # seconds in which an alert is to come
RUNNING = 110.0  # seconds for which all is well before the faults
SETTINGS = (
    "schedule.epochs=100000", "validation.every_steps=100000", "log_steps=20", "checkpoint.every_steps=50",
    "pulse.lost_seconds=150",  # so long the other rank of a stopped one is there to be asked
    "monitor.port=21480",  # where no other run of this machine is: it would take the killed rank's port
)  # fmt: skip
# A step takes as long as a larger network's would. A file "poison" has one batch of the rank be infinite.
RANK = """
import time
from pathlib import Path
import pretrain.training.trainer as trainer
from cluster.cli import main

plain = trainer.network_input

def slow(*arguments, **options):
    time.sleep(0.25)
    video = plain(*arguments, **options)
    if Path("poison").exists():
        Path("poison").unlink()
        video[0, 0, 0, 0, 0] = float("inf")
    return video

trainer.network_input = slow
main()
"""


@dataclass
class LiveRun:
    """A run whose ranks are processes of the test, in a folder of its own."""

    name: str
    folder: Path
    ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)
    readiness: set[tuple[int, str]] = field(default_factory=set)  # what its first rank answered at /readyz

    def start(self, recipe: Path, store: Path, variables: dict[str, str]) -> None:
        """Start both ranks."""
        (self.folder / self.name).mkdir(parents=True, exist_ok=True)
        words = ["pretrain", str(recipe), f"data.store={store}", f"run={self.name}", *SETTINGS]
        port = str(free_port())
        for rank in ("0", "1"):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port}
            with (self.folder / f"rank-{rank}.out").open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-c", RANK, *words], cwd=self.folder, env={**variables, **own},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            self.ranks.append(process)

    @property
    def said(self) -> str:
        """What its ranks have printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("rank-*.out")))

    def workers(self) -> list[psutil.Process]:
        """The processes that decode for it."""
        return [child for rank in self.ranks for child in psutil.Process(rank.pid).children(recursive=True)]

    def end(self) -> None:
        """Kill all of it."""
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


def kill(run: LiveRun) -> None:
    """A rank dies."""
    run.ranks[1].kill()


def stop(run: LiveRun) -> None:
    """A rank hangs."""
    run.ranks[1].send_signal(signal.SIGSTOP)


def starve(run: LiveRun) -> None:
    """The processes that decode get on for a hundredth of the time."""
    workers = run.workers()

    def hold() -> None:
        while any(rank.poll() is None for rank in run.ranks):
            for number, seconds in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.02)):
                for worker in workers:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.send_signal(number)
                time.sleep(seconds)

    threading.Thread(target=hold, daemon=True).start()


def fill(run: LiveRun) -> None:
    """The disk of the run is full, but for a little."""
    disk = run.folder / run.name
    with (disk / "filling").open("wb") as file:
        file.write(b"x" * (shutil.disk_usage(disk).free - 2**20))


def poison(run: LiveRun) -> None:
    """A batch has a pixel that is infinite."""
    (run.folder / "poison").touch()


FAULTS: dict[str, tuple[Callable[[LiveRun], None], set[str]]] = {
    "killed": (kill, {"ReelscaleRankDown"}),
    "stopped": (stop, {"ReelscaleRankDown"}),
    "starved": (starve, {"ReelscaleDataBound"}),
    "full": (fill, {"ReelscaleDiskNearlyFull"}),
    "poisoned": (poison, {"ReelscaleNotFinite"}),
    "well": (lambda run: None, set()),
}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 MB at a folder; skips where none can be mounted."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fired(url: str) -> dict[str, set[str]]:
    """The alerts that have fired so far, by the run."""
    alerts: dict[str, set[str]] = {}
    for each in ask(url, 'group by (alertname, run) (max_over_time(ALERTS{alertstate="firing"}[30m]))'):
        alerts.setdefault(each["metric"]["run"], set()).add(each["metric"]["alertname"])
    return alerts


def ask_ready(run: LiveRun, url: str) -> None:
    """Ask a run's first rank whether it gets on, and keep the answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            run.readiness.add((answer.status, ""))
    except urllib.error.HTTPError as error:
        run.readiness.add((error.code, error.read().decode().partition(" for ")[0]))
    except OSError:
        run.readiness.add((0, "nobody answers"))


@pytest.fixture()
def runs(store: Path, recipe: Path, tmp_path: Path) -> Iterator[tuple[str, dict[str, LiveRun]]]:
    """The URL of a Prometheus as `monitor up` starts it, and a run for each fault."""
    port, targets = free_port(), tmp_path / "cache" / "targets"
    targets.mkdir(parents=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "REELSCALE_CACHE": str(tmp_path / "cache")}
    variables |= {**own, "MASTER_ADDR": "127.0.0.1"}
    everyone = {name: LiveRun(name, tmp_path / f"of-{name}") for name in FAULTS}
    written = write_folder(tmp_path / "monitoring", ScrapeSettings(targets=str(targets)), loopback_url(port))
    assert PROMETHEUS
    with small_disk(tmp_path / "of-full" / "full"), running_server(PROMETHEUS, written, port):
        try:
            for run in everyone.values():
                run.start(recipe, store, variables)
            yield loopback_url(port), everyone
        finally:
            for run in everyone.values():
                run.end()


def test_each_fault_fires_its_alert_and_no_other(runs: tuple[str, dict[str, LiveRun]]) -> None:
    url, everyone = runs

    def training() -> bool:
        ended = [run.said for run in everyone.values() if any(rank.poll() is not None for rank in run.ranks)]
        assert not ended, ended
        return len(ask(url, "reelscale_train_step_seconds_count >= 10")) == 2 * len(everyone)

    until(training, "two ranks of each run that train")
    time.sleep(RUNNING)
    assert fired(url) == {}
    answering: dict[str, str] = {}
    for each in ask(url, 'reelscale_ready{rank="0"}'):
        labels: dict[str, Any] = each["metric"]
        answering[labels["run"]] = f"http://{labels['instance']}/readyz"
    for name, (break_it, _) in FAULTS.items():
        break_it(everyone[name])
    begin, came = time.monotonic(), dict[str, float]()
    while time.monotonic() < begin + WITHIN:
        for name in fired(url):
            came.setdefault(name, time.monotonic() - begin)
        for name, run in everyone.items():
            ask_ready(run, answering[name])
        time.sleep(1)
    print({name: round(seconds) for name, seconds in came.items()}, {n: r.readiness for n, r in everyone.items()})
    assert fired(url) == {name: alerts for name, (_, alerts) in FAULTS.items() if alerts}
    assert (503, "no step") in everyone["stopped"].readiness
    for name in ("well", "starved", "full", "poisoned"):
        assert everyone[name].readiness == {(200, "")}, name
