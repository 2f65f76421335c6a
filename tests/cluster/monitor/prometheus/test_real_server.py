"""The real Prometheus: it scrapes, its rules hold, every panel has data, and a killed rank is noticed."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.monitor.prometheus.dashboards import dashboards
from cluster.monitor.prometheus.firing_alerts import Watch, watch
from cluster.monitor.prometheus.monitoring_folder import write_folder
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.monitor.prometheus.server import loopback_url, running_server
from tests.cluster.monitor.prometheus.fleet import RUN, STORE, Fleet, sharding, training
from tests.cluster.monitor.prometheus.live_fleet import Process, complete, serving
from tests.support.commands import LONGEST, running
from tests.support.s3 import free_port

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(
        PROMETHEUS is None, reason="no prometheus (Debian's package); what holds without it: test_expressions.py"
    ),
]
RUN_WIDE = ("reelscale_train_", "reelscale_validation_", "reelscale_build", "reelscale_gpu", "reelscale_host")
OF_READING = ("reelscale_clips_", "reelscale_decode_", "reelscale_read_", "reelscale_checkpoint_seconds")
Watched = tuple[str, dict[str, Process], Path]


def whole_fleet() -> Fleet:
    """A run of two ranks and sharding, with every metric that there is."""
    fleet = training().join(sharding())
    for rank in (0, 1):
        own = {"instance": f"127.0.0.1:{9480 + rank}", "run": RUN, "rank": rank, "node": f"node{rank}"}
        complete(fleet, RUN_WIDE + OF_READING, job="reelscale", **own)
    own = {"instance": "127.0.0.1:9700", "run": STORE, "rank": 0, "node": "node9"}
    return complete(fleet, ("reelscale_shard_", "reelscale_build", "reelscale_host"), job="reelscale", **own)


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=30) as answer:
        series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return series


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.5)
    raise AssertionError(f"waited in vain for {what}")


def without_data(url: str) -> list[str]:
    """The queries of panels to which there is no answer."""
    asked = [
        target["expr"].replace("$__rate_interval", "15s").replace("$run", ".*")
        for board in dashboards().values()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]
    return [expression for expression in asked if not expression.startswith("ALERTS") and not ask(url, expression)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The URL of a Prometheus that looks each second, and the processes that it scrapes."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    targets = folder / "targets"
    written = write_folder(folder / "monitoring", ScrapeSettings(targets=str(targets)), loopback_url(port))
    config = written.config.read_text()
    written.config.write_text(config.replace(": 10s", ": 1s").replace(": 8s", ": 1s"))
    assert PROMETHEUS
    with serving(whole_fleet(), targets) as processes, running_server(PROMETHEUS, written, port):
        yield loopback_url(port), processes, targets


def test_every_panel_has_data_and_a_killed_rank_alone_is_told(watched: Watched) -> None:
    url, processes, _ = watched
    until(lambda: watch(url).answering == 3, "three processes")
    until(lambda: not without_data(url), f"data for {without_data(url)}")
    time.sleep(25)  # longer than a fault at the start would take to be told
    state = watch(url)
    assert state == Watch([], 14, 3, 3)
    processes["127.0.0.1:9481"].kill()
    state = until(lambda: (now := watch(url)).firing and now, "an alert")
    (alert,) = state.firing
    assert (alert.name, alert.severity) == ("ReelscaleRankDown", "critical")
    assert {key: alert.labels[key] for key in ("run", "rank", "node")} == {"run": RUN, "rank": "1", "node": "node1"}
    assert "Rank 1 of run motion on node node1" in alert.description
    assert alert.runbook.endswith("cluster/OPERATIONS.md#reelscalerankdown")
    processes["127.0.0.1:9480"].end()  # the other one, in order
    until(lambda: watch(url).targets == 2, "a target less")
    time.sleep(25)
    fired = ask(url, 'group by (alertname, rank) (max_over_time(ALERTS{alertstate="firing"}[10m]))')
    assert [each["metric"] for each in fired] == [{"alertname": "ReelscaleRankDown", "rank": "1"}]


def test_the_command_starts_a_server_tells_alerts_and_ends_with_all_of_it(tmp_path: Path) -> None:
    port = free_port()
    words = ["monitor", "up", "--port", str(port), "--targets", str(tmp_path / "targets")]
    with running(*words, folder=tmp_path) as command:
        command.until(lambda: "Ctrl-C ends it" in command.out)
        assert f"Prometheus serves {loopback_url(port)}" in command.out
        assert watch(loopback_url(port)) == Watch([], 14, 0, 0)
        with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
            elsewhere.connect(("127.0.0.2", port))
        command.ctrl_c()
        assert command.exit_code() == 75
        assert command.descendants() == {}
    assert (tmp_path / "monitoring" / "data").is_dir()


def test_a_command_that_is_killed_takes_the_server_along(tmp_path: Path) -> None:
    words = ["monitor", "up", "--port", str(free_port()), "--targets", str(tmp_path / "targets")]
    with running(*words, folder=tmp_path) as command:
        command.until(lambda: "Ctrl-C ends it" in command.out)
        assert command.descendants()
        command.kill()
        until(lambda: not command.descendants(), "the end of the server")


def test_a_server_that_cannot_start_fails_the_command(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "monitoring").mkdir()
    (tmp_path / "monitoring" / "data").write_text("no folder")
    with running("monitor", "up", "--port", str(port), folder=tmp_path) as command:
        assert command.exit_code() == 1
        assert "prometheus ended with exit code" in command.err and "Traceback" not in command.err
