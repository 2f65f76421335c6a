"""The metrics endpoint, scraped as Prometheus scrapes it."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

import pretrain.metrics
import sharding.metrics
from cluster.monitor.endpoint import MonitorSettings, serve


@pytest.fixture(scope="module")
def url() -> str:
    served = serve(MonitorSettings())
    assert served
    return served


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.status, answer.read().decode()


def test_only_this_machine_is_served(url: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1" and parts.path == "/metrics" and parts.port
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", parts.port), timeout=5):
        pass


def test_metrics_are_prometheus_text_with_help_and_our_names(url: str) -> None:
    pretrain.metrics.STEP.set(17)
    sharding.metrics.FAILURES.labels(kind='it is "odd"\n').inc(0)
    status, text = get(url)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert families["reelscale_train_step"].samples[0].value == 17
    expected = {
        "reelscale_train_samples", "reelscale_train_steps", "reelscale_train_loss", "reelscale_train_top1_ratio",
        "reelscale_train_learning_rate", "reelscale_train_gradient_norm", "reelscale_train_clips_per_second",
        "reelscale_train_data_wait_ratio", "reelscale_validation_clip1_ratio", "reelscale_checkpoints",
        "reelscale_checkpoint_seconds", "reelscale_clips_decoded", "reelscale_shard_samples",
        "reelscale_shard_failures", "reelscale_shard_bytes", "reelscale_shard_videos", "reelscale_shard_frames",
        "reelscale_shard_read_bytes", "reelscale_shard_jobs", "reelscale_shard_remaining_videos",
        "reelscale_shard_left_seconds", "reelscale_shard_oldest_job_seconds",
    }  # fmt: skip
    assert expected - set(families) == set()
    assert [name for name in expected if not families[name].documentation] == []


def test_health_and_unknown_paths(url: str) -> None:
    assert get(url.replace("/metrics", "/healthz"))[0] == 200
    for path in ("/", "/metricsx", "/metrics/more", "/favicon.ico"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(url.replace("/metrics", path))
        assert refused.value.code == 404


def test_a_busy_port_costs_the_metrics_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve(MonitorSettings(port=port)) is None
    assert str(port) in caplog.text


def test_an_address_that_is_not_ours_costs_the_metrics_not_the_run() -> None:
    assert serve(MonitorSettings(address="192.0.2.1")) is None
