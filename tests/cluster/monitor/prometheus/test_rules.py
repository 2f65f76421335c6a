"""The alerting rules, each on the course of a fault: it fires within two minutes, and no other does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.monitor.prometheus.monitoring_folder import rule_files
from tests.cluster.monitor.prometheus.faults import FAULTS, LATE_FAULTS, QUIET
from tests.cluster.monitor.prometheus.fleet import EVERY, FAULT, LONGEST, RUN, Fleet, training

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool (Debian's package prometheus); what holds without it: test_expressions.py"
)


def verdict(tmp_path: Path, fleet: Fleet, test: dict[str, Any]) -> str:
    """What promtool says of a fleet: "" where everything is as expected."""
    for name, text in rule_files().items():
        (tmp_path / name).write_text(text)
    in_order = [text for _, text in sorted(rule_files().items())]  # alerts.yml, recording.yml
    end = max(_seconds(each["eval_time"]) for tests in test.values() for each in tests)
    group = {"interval": f"{EVERY}s", "input_series": fleet.input_series(end), **test}
    document = {
        "rule_files": sorted(rule_files()),
        "evaluation_interval": f"{EVERY}s",
        # Prometheus keeps no order among groups: at worst alerts are judged by records of the round before.
        "group_eval_order": [each["name"] for text in in_order for each in yaml.safe_load(text)["groups"]],
        "tests": [group],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document, width=10**6))
    done = subprocess.run([str(PROMTOOL), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def firing_at(times: list[int], *alerts: tuple[str, str]) -> list[dict[str, Any]]:
    """That at each of these times (alert, run) fire, and no others."""
    samples = [
        {"labels": f'{{alertname="{alert}"' + (f', run="{run}"' if run else "") + "}", "value": 1}
        for alert, run in alerts
    ]
    expression = 'group by (alertname, run) (ALERTS{alertstate="firing"})'
    return [{"expr": expression, "eval_time": f"{time}s", "exp_samples": samples} for time in times]


def fired_until(time: int, *alerts: tuple[str, str]) -> list[dict[str, Any]]:
    """That from the beginning until this time these (alert, run) have fired at any time, and no others."""
    (test,) = firing_at([time], *alerts)
    ever = f'group by (alertname, run) (max_over_time(ALERTS{{alertstate="firing"}}[{time + EVERY}s]))'
    return [{**test, "expr": ever}]


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def annotations(alert: str) -> dict[str, str]:
    """An alert's texts, as they are in the rules."""
    groups = [group for text in rule_files().values() for group in yaml.safe_load(text)["groups"]]
    (rule,) = [rule for group in groups for rule in group["rules"] if rule.get("alert") == alert]
    return {**rule["annotations"], "severity": rule["labels"]["severity"]}


def alert_says(alert: str, time: int, description: str, labels: dict[str, str]) -> dict[str, Any]:
    """That an alert fires with this description; what is not of the fault is read from the rule."""
    texts = annotations(alert)
    summary = texts["summary"]
    for key, value in labels.items():
        summary = summary.replace(f"{{{{ $labels.{key} }}}}", value)
    expected = {"summary": summary, "description": description, "runbook": texts["runbook"]}
    fires = {"exp_labels": {**labels, "severity": texts["severity"]}, "exp_annotations": expected}
    return {"alertname": alert, "eval_time": f"{time}s", "exp_alerts": [fires]}


@needs_promtool
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fires_its_alert_within_two_minutes_and_no_other(tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    fires = (fault.alert, fault.labels["run"])
    before = fired_until(fault.begins - EVERY) if fault.begins else []
    after = firing_at([fault.begins + 120], fires) + fired_until(fault.begins + 240, fires)
    says = alert_says(fault.alert, fault.begins + 120, fault.description, fault.labels)
    test = {"promql_expr_test": before + after, "alert_rule_test": [says]}
    assert verdict(tmp_path, fault.story(), test) == ""


@needs_promtool
@pytest.mark.parametrize("name", LATE_FAULTS)
def test_other_faults_fire_theirs(tmp_path: Path, name: str) -> None:
    story, alert, run, time = LATE_FAULTS[name]
    test = {"promql_expr_test": fired_until(FAULT - EVERY) + fired_until(time, (alert, run))}
    assert verdict(tmp_path, story(), test) == ""


@needs_promtool
@pytest.mark.parametrize("name", QUIET)
def test_nothing_fires_where_nothing_is_wrong(tmp_path: Path, name: str) -> None:
    test = {"promql_expr_test": fired_until(LONGEST)}
    assert verdict(tmp_path, QUIET[name](), test) == ""


@needs_promtool
def test_a_fault_is_told_of_its_own_run(tmp_path: Path) -> None:
    fleet = FAULTS["a batch is poisoned"].story().join(training("other"))
    test = {"promql_expr_test": firing_at([FAULT + 120], ("ReelscaleNotFinite", RUN))}
    assert verdict(tmp_path, fleet, test) == ""


def test_each_alert_has_a_fault_that_fires_it() -> None:
    groups = [group for text in rule_files().values() for group in yaml.safe_load(text)["groups"]]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    fired = {fault.alert for fault in FAULTS.values()} | {alert for _, alert, _, _ in LATE_FAULTS.values()}
    assert fired == alerts


@needs_promtool
def test_promtool_is_content(tmp_path: Path) -> None:
    for name, text in rule_files().items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [str(PROMTOOL), "check", "rules", *rule_files()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
