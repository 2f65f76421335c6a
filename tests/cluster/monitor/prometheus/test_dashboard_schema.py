"""The dashboards' JSON against Grafana's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.monitor.prometheus.dashboards import dashboards
from cluster.monitor.prometheus.grafana_json import Panel, Query, Row, dashboard

sdk = pytest.importorskip("grafana_foundation_sdk", reason="no grafana-foundation-sdk; see test_expressions.py")


def as_grafana_reads(board: dict[str, Any]) -> Any:
    """A dashboard through Grafana's types and back: they keep the fields that they know, and no others."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(json.loads(json.dumps(board))), cls=JSONEncoder))


def lost(ours: Any, theirs: Any, at: str = "") -> list[str]:
    """Where in ours something is that is not in theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        missing = [f"{at}.{key}" for key in ours if key not in theirs]
        return missing + [each for key in ours if key in theirs for each in lost(ours[key], theirs[key], f"{at}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [each for n, pair in enumerate(zip(ours, theirs, strict=True)) for each in lost(*pair, f"{at}[{n}]")]
    return [] if ours == theirs else [at]


@pytest.mark.parametrize("name", dashboards())
def test_grafana_knows_every_field(name: str) -> None:
    board = dashboards()[name]
    assert lost(board, as_grafana_reads(board)) == []


def test_a_field_that_grafana_lacks_is_seen() -> None:
    board = dashboard("a", "A", "up", [Row("r", (Panel("p", (Query("up"),)),))])
    panel = board["panels"][1]
    panel["fieldConfig"]["defaults"]["unti"] = "s"
    panel["options"]["legends"] = {}
    del board["title"]
    board["titel"] = "A"
    expected = [".titel", ".panels[1].fieldConfig.defaults.unti", ".panels[1].options.legends"]
    assert lost(board, as_grafana_reads(board)) == expected
