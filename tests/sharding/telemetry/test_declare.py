"""Declared metrics: nothing that is not measured has a sample, and all are in the table."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, generate_latest

from sharding.telemetry import declare


@pytest.fixture()
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Metrics that a test declares, taken back after it."""
    metrics: list[object] = []
    monkeypatch.setattr(declare, "DECLARED", {})
    yield metrics
    for metric in metrics:
        REGISTRY.unregister(metric)  # type: ignore[arg-type]


def samples(name: str) -> list[str]:
    return [line for line in generate_latest(REGISTRY).decode().splitlines() if line.startswith(name)]


def test_a_gauge_has_no_sample_until_it_is_measured(served: list[object]) -> None:
    gauge = declare.gauge("reelscale_test_heat", "How hot.", "every rank")
    served.append(gauge)
    assert samples("reelscale_test_heat") == []
    gauge.set(0)
    assert samples("reelscale_test_heat") == ["reelscale_test_heat 0.0"]
    gauge.set(math.inf)
    assert samples("reelscale_test_heat") == ["reelscale_test_heat +Inf"]
    for unmeasured in (gauge.unset, lambda: gauge.set(math.nan), lambda: gauge.set_function(lambda: math.nan)):
        gauge.set(1)
        unmeasured()
        assert samples("reelscale_test_heat") == []


def test_a_gauge_with_labels_has_samples_of_what_is_measured(served: list[object]) -> None:
    gauge = declare.gauge("reelscale_test_speed", "How fast.", "every rank", ["device"])
    served.append(gauge)
    gauge.labels(device="a").set(2)
    gauge.labels(device="b").unset()
    assert samples("reelscale_test_speed") == ['reelscale_test_speed{device="a"} 2.0']


def test_a_counter_begins_at_0_with_each_value_of_its_label(served: list[object]) -> None:
    served.append(declare.counter("reelscale_test_faults_total", "Faults.", "rank 0", "kind", ["big", "small"]))
    lines = samples("reelscale_test_faults_total")
    assert lines == [f'reelscale_test_faults_total{{kind="{kind}"}} 0.0' for kind in ("big", "small")]


def test_an_info_says_one_thing_at_a_time(served: list[object]) -> None:
    info = declare.info("reelscale_test_info", "What it is.", "every process", ["name", "size"])
    served.append(info)
    assert samples("reelscale_test_info") == []
    declare.set_info(info, name="first", size=1)
    declare.set_info(info, name="second", size="")
    assert samples("reelscale_test_info") == ['reelscale_test_info{name="second",size=""} 1.0']


def test_the_table_has_names_labels_units_and_who_serves_them(served: list[object]) -> None:
    served.append(declare.counter("reelscale_test_read_bytes_total", "Bytes read.", "rank 0", "kind", ["a"]))
    served.append(declare.histogram("reelscale_test_call_seconds", "Time of a call.", "every rank", [1, 2]))
    declare.listed("reelscale_test_last_timestamp_seconds", "gauge", "When it was.", "every process", ())
    assert declare.metrics_table().splitlines()[2:] == [
        "| `reelscale_test_call_seconds` | histogram |  | seconds | Time of a call | every rank |",
        "| `reelscale_test_last_timestamp_seconds` | gauge |  | seconds since 1970 | When it was | every process |",
        "| `reelscale_test_read_bytes_total` | counter | `kind` | bytes | Bytes read | rank 0 |",
    ]
