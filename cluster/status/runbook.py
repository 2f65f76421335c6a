"""What to do about a problem: the runbook lines of the alerts, which stand with their rules alone."""

from __future__ import annotations

import functools
import re

import yaml

from cluster.monitor.prometheus.monitoring_folder import rule_files

_PAGE = re.compile(r"[:.]?\s*cluster/OPERATIONS\.md#\S+$")


def to_do(alert: str, folder: str = "") -> str:
    """The runbook line of an alert, without its address; `folder`: the run's, where it is known.

    Raises KeyError for a name that no alert has.
    """
    line = runbook_lines()[alert]
    return line.replace("logs RUN`", f"logs {folder}`") if folder else line


@functools.cache
def runbook_lines() -> dict[str, str]:
    """Alert → its runbook line."""
    rules = [
        rule
        for text in rule_files().values()
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    return {rule["alert"]: _PAGE.sub("", " ".join(rule["annotations"]["runbook"].split())) for rule in rules}
