"""The endpoint of a process, asked as Prometheus and probes ask it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import REGISTRY, Collector

import pretrain.metrics
import sharding.metrics
from cluster.monitor.endpoint import Served, endpoint
from cluster.monitor.page import LabelledRegistry, Source
from cluster.monitor.ports import listen, reached_at
from cluster.monitor.settings import MonitorSettings
from cluster.monitor.targets import Target, ports_of_others, read_targets, targets_folder
from pretrain.resilience.progress import Progress
from tests.cluster.monitor.conftest import Clock, ask
from tests.support.s3 import free_port


def test_only_this_machine_is_served(served: Served) -> None:
    parts = urlsplit(served.url)
    assert parts.hostname == "127.0.0.1" and parts.path == "/metrics" and parts.port
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", parts.port), timeout=5):
        pass


@pytest.mark.parametrize("openmetrics", [False, True])
def test_every_sample_says_of_which_run_rank_and_node_it_is(served: Served, openmetrics: bool) -> None:
    pretrain.metrics.STEP.set(17)
    sharding.metrics.FAILURES.labels(kind='it is "odd"\n').inc(0)
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1" if openmetrics else "*/*"
    answer = ask(served, Accept=accept)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text" if openmetrics else "text/plain")
    parse = openmetrics_families if openmetrics else text_string_to_metric_families
    families = {family.name: family for family in parse(answer.text)}
    assert families["reelscale_train_step"].samples[0].value == 17
    assert families["reelscale_ready"].samples[0].value == 1
    here = {"run": "a run", "rank": "3", "node": socket.gethostname()}
    for family in families.values():
        assert family.documentation
        assert all(here.items() <= sample.labels.items() for sample in family.samples), family.name
    assert any(name.startswith("process_") for name in families) and "reelscale_shard_failures" in families


def test_what_a_reader_accepts_is_no_part_of_the_answer(served: Served) -> None:
    answer = ask(served, Accept="application/openmetrics-text; version=9.9.9; escaping=allow-utf-8")
    assert "9.9" not in answer.headers["Content-Type"]


def test_a_metrics_own_labels_win() -> None:
    registry = CollectorRegistry()
    Gauge("slow", "A rank.", ["rank"], registry=registry).labels(rank="7").set(1)
    families = LabelledRegistry(Source("pretrain", "run", 3, "host"), lambda: False, registry).collect()
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert samples["slow"].labels == {"run": "run", "rank": "7", "node": "host"}
    assert samples["reelscale_ready"].value == 0


def test_readiness_follows_the_progress_and_health_does_not(served: Served, progress: Progress, clock: Clock) -> None:
    progress.advance()
    clock.seconds += 12
    ready = ask(served, "/readyz")
    assert (ready.status, ready.text) == (200, "ok: the last step 12 s ago\n")
    clock.seconds += 300
    stalled = ask(served, "/readyz")
    assert (stalled.status, stalled.text) == (503, "no step for 312 s (limit 300 s)\n")
    assert (ask(served, "/healthz").status, ask(served, "/healthz").text) == (200, "ok\n")
    assert "reelscale_ready{" in (page := ask(served, Accept="application/openmetrics-text").text)
    assert [line.split()[-1] for line in page.splitlines() if line.startswith("reelscale_ready{")] == ["0.0"]
    progress.advance()
    assert ask(served, "/readyz").status == 200


def test_other_paths_and_methods(served: Served) -> None:
    index = ask(served, "/")
    assert index.status == 200 and index.text.count("\n") == 1
    assert index.text.startswith("reelscale pretrain a run, rank 3 on ") and "/readyz" in index.text
    for path in ("/metricsx", "/metrics/more", "/favicon.ico", "//metrics", "/%2e%2e/metrics"):
        assert ask(served, path).status == 404, path
    parts = urlsplit(served.url)
    for method, status in (("HEAD", 200), ("POST", 405), ("DELETE", 405), ("OPTIONS", 405)):
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        connection.request(method, "/healthz")
        assert connection.getresponse().status == status
        connection.close()


def test_a_taken_port_is_told_and_the_next_free_one_is_had(progress: Progress, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = min(taken.getsockname()[1], 65000)
        settings = MonitorSettings(port=port, ports=64, targets=str(tmp_path))
        with endpoint(settings, "pretrain", "/runs/a", progress) as first:
            assert first and first.line.endswith(f"(port {port} is taken)")
            with endpoint(settings, "pretrain", "/runs/b", progress) as second:
                assert second and second.url != first.url
                assert len({port, urlsplit(first.url).port, urlsplit(second.url).port}) == 3
                assert ask(second, "/").text.startswith("reelscale pretrain b")


def test_the_port_of_a_killed_process_is_its_own_until_it_begins_anew(progress: Progress, tmp_path: Path) -> None:
    """Who answered there would hide that it is missed."""
    port = min(free_port(), 65000)
    settings = MonitorSettings(port=port, ports=3, targets=str(tmp_path))
    killed = tmp_path / "a-12345678-00000.json"
    killed.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {}}]))
    (tmp_path / "broken.json").write_text('[{"targets": 7}]')
    (tmp_path / "elsewhere.json").write_text(json.dumps([{"targets": [f"10.0.0.1:{port + 1}"], "labels": {}}]))
    with endpoint(settings, "pretrain", "/runs/b", progress) as other:
        assert other and urlsplit(other.url).port == port + 1
    assert ports_of_others(killed, "127.0.0.1") == set() and ports_of_others(tmp_path / "b", "127.0.0.1") == {port}
    with endpoint(settings.model_copy(update={"ports": 1}), "pretrain", "/runs/b", progress) as last:
        assert last and urlsplit(last.url).port == port, "where no other is free"


def test_ranks_of_a_machine_take_ports_that_follow_whoever_starts_first() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = min(probe.getsockname()[1], 65000)
    settings = MonitorSettings(port=first, ports=4)
    listeners = {number: listen(settings, number)[0] for number in (2, 0, 1, 3)}
    try:
        ports = {number: each.getsockname()[1] - first for number, each in listeners.items()}
        assert ports == {0: 0, 1: 1, 2: 2, 3: 3}
        with pytest.raises(OSError, match=f"the ports {first} to {first + 3} are all taken"):
            listen(settings, 0)
    finally:
        for each in listeners.values():
            each.close()


@pytest.mark.parametrize(
    "update", [{"address": "192.0.2.1", "insecure": True}, {"address": "no.such.host.invalid", "insecure": True}]
)
def test_what_cannot_be_served_costs_the_metrics_not_the_run(
    update: dict[str, object], progress: Progress, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    settings = MonitorSettings.model_validate({**update, "targets": str(tmp_path)})
    with endpoint(settings, "pretrain", "/runs/a", progress) as served:
        assert served is None
    assert str(update["address"]) in caplog.text and list(tmp_path.iterdir()) == []


def test_an_address_of_all_interfaces_is_told_as_others_reach_it(progress: Progress, tmp_path: Path) -> None:
    for address in ("0.0.0.0", "::"):
        place = reached_at(MonitorSettings(address=address, insecure=True), 9480)
        host = place.rpartition(":")[0].strip("[]")
        assert place.endswith(":9480") and host not in ("0.0.0.0", "::", "127.0.0.1", "::1"), place
    settings = MonitorSettings(address="0.0.0.0", port=0, insecure=True, targets=str(tmp_path))
    with endpoint(settings, "pretrain", "/runs/a", progress) as served:
        assert served and ask(served, "/healthz").status == 200, "the URL that is told is one that answers"
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_text())[0]["targets"] == [urlsplit(served.url).netloc]


def test_a_file_for_prometheus_is_there_while_the_process_is_served(progress: Progress, tmp_path: Path) -> None:
    settings = MonitorSettings(port=0, targets=str(tmp_path / "deep" / "targets"))
    with endpoint(settings, "shard", "s3://bucket/store/", progress) as served:
        assert served
        (file,) = (tmp_path / "deep" / "targets").iterdir()
        (entry,) = json.loads(file.read_text())
        assert entry["targets"] == [urlsplit(served.url).netloc]
        labels = entry["labels"]
        kept = {name: value for name, value in labels.items() if not name.startswith("__meta_")}
        assert kept == {"job": "reelscale", "kind": "shard", "__scheme__": "http"}, "what Prometheus keeps"
        target = Target(entry["targets"][0], "http", "shard", "store", 0, socket.gethostname(), "s3://bucket/store/")
        assert read_targets(file.parent) == [target]
        assert file.suffix == ".json" and file.name.startswith("store-")
        with endpoint(settings, "shard", "s3://other/store", progress):
            assert len(list(file.parent.iterdir())) == 2, "a store of that name elsewhere"
    assert not file.exists()


def test_the_file_stays_after_a_failure_and_the_next_attempt_takes_it_over(progress: Progress, tmp_path: Path) -> None:
    settings = MonitorSettings(port=0, targets=str(tmp_path))
    with pytest.raises(RuntimeError), endpoint(settings, "pretrain", "/runs/a", progress):
        raise RuntimeError
    (left,) = tmp_path.iterdir()
    with endpoint(settings, "pretrain", "/runs/a", progress):
        assert list(tmp_path.iterdir()) == [left]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_in_order_leaves_no_file_of_a_rank_that_was_killed(progress: Progress, tmp_path: Path) -> None:
    settings = MonitorSettings(port=0, targets=str(tmp_path))
    for folder in ("/runs/a", "/runs/b"):
        with pytest.raises(RuntimeError), endpoint(settings, "pretrain", folder, progress, rank=1):
            raise RuntimeError
    assert len(list(tmp_path.iterdir())) == 2
    with endpoint(settings, "pretrain", "/runs/a", progress, rank=2):
        pass
    assert len(list(tmp_path.iterdir())) == 2, "the run goes on"
    with endpoint(settings, "pretrain", "/runs/a", progress):
        pass
    assert [file.name[:2] for file in tmp_path.iterdir()] == ["b-"]


def test_a_folder_that_cannot_be_written_costs_the_file_alone(
    progress: Progress, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    settings = MonitorSettings(port=0, targets=str(tmp_path / "file" / "targets"))
    with endpoint(settings, "pretrain", "/runs/a", progress) as served:
        assert served and ask(served).status == 200
    assert "cannot be written" in caplog.text


class _Slow(Collector):
    """Collects when it is let."""

    def __init__(self) -> None:
        self.let, self.times = threading.Event(), 0

    def describe(self) -> Iterator[object]:
        return iter(())

    def collect(self) -> Iterator[object]:
        self.times += 1
        self.let.wait(30)
        return iter(())


def test_a_figure_that_hangs_holds_no_probe_and_one_thread(served: Served) -> None:
    slow = _Slow()
    REGISTRY.register(slow)  # type: ignore[arg-type]
    try:
        answers: list[int] = []
        readers = [threading.Thread(target=lambda: answers.append(ask(served).status)) for _ in range(20)]
        for reader in readers:
            reader.start()
        while not slow.times:
            time.sleep(0.01)
        assert ask(served, "/healthz").status == ask(served, "/readyz").status == 200
        rendering = [thread for thread in threading.enumerate() if thread.name == "monitor-render"]
        assert len(rendering) == 1
        slow.let.set()
        for reader in readers:
            reader.join()
        assert answers == [200] * 20 and slow.times <= 2, "one rendering for all who wait for it"
    finally:
        slow.let.set()
        REGISTRY.unregister(slow)  # type: ignore[arg-type]


def test_nothing_is_left_of_an_endpoint_that_has_ended(progress: Progress, tmp_path: Path) -> None:
    settings = MonitorSettings(port=0, targets=str(tmp_path))
    with endpoint(settings, "pretrain", "/runs/a", progress) as served:
        assert served
        parts = urlsplit(served.url)
        idle = socket.create_connection((parts.hostname, parts.port), timeout=60)
        assert ask(served, "/healthz").status == 200
    with idle:
        assert idle.recv(1) == b"", "the connection was closed"
    assert not any(thread.name == "monitor" for thread in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname, parts.port), timeout=60)


def test_a_home_folder_may_be_named_for_target_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert targets_folder("~/targets") == tmp_path / "targets"
    monkeypatch.chdir(tmp_path)
    assert targets_folder("targets") == tmp_path / "targets"
    monkeypatch.setenv("REELSCALE_CACHE", str(tmp_path / "cache"))
    assert targets_folder(None) == tmp_path / "cache" / "targets"
