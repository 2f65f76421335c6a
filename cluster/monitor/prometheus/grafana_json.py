"""Panels in a few words → Grafana's dashboard JSON, of the schema that Grafana 10 and later read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24  # of Grafana's grid
_SCHEMA = 39  # Grafana 10.4


@dataclass(frozen=True)
class Query:
    """An expression in PromQL, and what its series are called; `$run` and `$__rate_interval` are Grafana's to fill."""

    expression: str
    legend: str = "{{run}}"


@dataclass(frozen=True)
class Panel:
    """One figure. `unit` is of Grafana's names: s, bytes, percentunit, short … ; `width` of 24 columns.

    `nothing`: what stands where a query gives no series.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8
    what: str = ""
    nothing: str = "–"


@dataclass(frozen=True)
class Row:
    """Panels under one heading, from left to right."""

    title: str
    panels: tuple[Panel, ...]


def dashboard(name: str, title: str, runs_of: str, rows: Sequence[Row]) -> dict[str, Any]:
    """A dashboard as Grafana reads it; `runs_of`: the metric whose runs can be chosen."""
    panels: list[dict[str, Any]] = []
    down = 0
    for row in rows:
        panels.append({"type": "row", "title": row.title, "collapsed": False, "panels": [], **_place(0, down, 24, 1)})
        down += 1
        across = height = 0
        for panel in row.panels:
            if across + panel.width > _COLUMNS:
                across, down = 0, down + height
            height = 4 if panel.kind == "stat" else 8
            panels.append(_panel(panel) | _place(across, down, panel.width, height))
            across += panel.width
        down += height
    for number, each in enumerate(panels, start=1):
        each["id"] = number
    return {
        "uid": f"reelscale-{name}",
        "title": title,
        "tags": ["reelscale"],
        "schemaVersion": _SCHEMA,
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables(runs_of)},
        "annotations": {"list": [_alert_annotation()]},
        "links": [
            {
                "title": "Reelscale",
                "type": "dashboards",
                "tags": ["reelscale"],
                "asDropdown": True,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }


def _place(across: int, down: int, width: int, height: int) -> dict[str, Any]:
    return {"gridPos": {"x": across, "y": down, "w": width, "h": height}}


def _variables(runs_of: str) -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": _SOURCE,
            "query": f"label_values({runs_of}, run)",
            "refresh": 2,  # when the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        },
    ]


def _alert_annotation() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Reelscale.*", alertstate="firing", run=~"$run|"}',
    }


def _panel(panel: Panel) -> dict[str, Any]:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": query.expression,
            "legendFormat": query.legend,
            "instant": table,
            "range": not table,
            "format": "table" if table else "time_series",
        }
        for number, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "noValue": panel.nothing, "custom": {}}, "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        "graphMode": "area",
        "colorMode": "none",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    },
    "table": {"showHeader": True, "frameIndex": 0},
}
