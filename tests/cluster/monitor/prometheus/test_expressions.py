"""What rules and dashboards ask for is served, and each alert has its page: held without a Prometheus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import pretrain.metrics
import pretrain.telemetry.gpu_usage
import sharding.metrics
import sharding.telemetry.build
import sharding.telemetry.host
from cluster.monitor.prometheus.dashboards import dashboards
from cluster.monitor.prometheus.monitoring_folder import rule_files
from sharding.telemetry.declare import DECLARED

ROOT = Path(__file__).parents[4]
SERVED_BY_OTHERS = {"reelscale_ready", "up", "ALERTS"}  # by the endpoint, and by Prometheus itself
OF_EVERY_SAMPLE = {"run", "rank", "node", "job", "instance", "discovery", "le"}
LABELS_OF_PROMETHEUS = {"alertname", "alertstate"}
ENDINGS = ("_bucket", "_sum", "_count")
DECLARING = (pretrain.metrics, pretrain.telemetry.gpu_usage, sharding.metrics, sharding.telemetry)


def rules() -> list[dict[str, Any]]:
    return [
        rule for text in rule_files().values() for group in yaml.safe_load(text)["groups"] for rule in group["rules"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def expressions() -> list[str]:
    """All that is asked of Prometheus: by rules, by what alerts say, and by dashboards."""
    asked = [rule["expr"] for rule in rules()]
    for rule in alerts().values():
        asked += re.findall(r'printf "((?:[^"\\]|\\.)*)"', rule["annotations"]["description"])
    for board in dashboards().values():
        asked += [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        asked += [
            each["query"].removeprefix("label_values(").partition(",")[0] for each in board["templating"]["list"][1:]
        ]
    return asked


def names_in(expression: str) -> set[str]:
    """The metrics, and recorded series, that an expression reads."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:rank|run|node):[a-z0-9_:]+|\breelscale_[a-z0-9_]+|\bup\b|\bALERTS\b", bare))


def base(name: str) -> str:
    """A metric's name as it is declared, of one of a histogram's series."""
    bare = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
    return bare if bare in DECLARED and DECLARED[bare].kind == "histogram" else name


def test_names_are_really_read() -> None:
    assert names_in(
        'max by (run) (rate(reelscale_a_total{up="x"}[5m])) > run:reelscale_b:max and on (job) up == 0'
    ) == {
        "reelscale_a_total",
        "run:reelscale_b:max",
        "up",
    }


def test_every_metric_that_is_asked_for_is_declared() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = set().union(*(names_in(expression) for expression in expressions()))
    assert len(asked) > 50
    assert {name for name in asked if base(name) not in DECLARED.keys() | recorded | SERVED_BY_OTHERS} == set()
    assert recorded <= asked


def test_every_label_that_is_asked_for_is_served() -> None:
    labels = {label for each in DECLARED.values() for label in each.labels} | OF_EVERY_SAMPLE | LABELS_OF_PROMETHEUS
    made = {"straggler"}  # of a value, by count_values
    asked = set()
    for expression in expressions():
        asked |= set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*(?:\"|%q)", expression))
        for group in re.findall(r"\b(?:by|on) \(([a-z_, ]*)\)", expression):
            asked |= {label.strip() for label in group.split(",") if label.strip()}
    assert {"kind", "reason", "run", "node"} <= asked
    assert asked - labels - made == set()


def test_every_alert_says_what_to_do_and_has_its_heading() -> None:
    page = (ROOT / "cluster" / "OPERATIONS.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (Reelscale\w+)$", page, re.MULTILINE)
    assert headings and sorted(headings) == sorted(alerts())
    for name, rule in alerts().items():
        severity, texts = rule["labels"]["severity"], rule["annotations"]
        assert severity in ("critical", "warning")
        assert re.search(rf"^### {name}\n\n`{severity}` · ", page, re.MULTILINE), name
        assert re.fullmatch(
            rf"[A-Z`].{{20,}}: ?cluster/OPERATIONS\.md#{name.lower()}|.*\? cluster/OPERATIONS\.md#{name.lower()}",
            texts["runbook"],
        ), name
        assert texts["summary"] and texts["description"], name


def test_no_alert_waits_longer_than_a_minute() -> None:
    assert {rule.get("for", "0s") for rule in alerts().values()} <= {"0s", "10s", "20s", "30s", "1m"}


def test_panels_have_places_of_their_own() -> None:
    for name, board in dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24 and not cells & taken, (name, panel["title"])
            taken |= cells
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
