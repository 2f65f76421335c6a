"""Which alerts of Reelscale fire, as a running Prometheus says."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from cluster.monitor.targets import JOB
from sharding.base.errors import UserError
from sharding.base.printable import visible

_PREFIX = "Reelscale"
_SEVERITIES = ("critical", "warning")
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class FiringAlert:
    """A fault under way. `since`: when its condition first held, as RFC 3339; `labels`: run, rank, node and more."""

    name: str
    severity: str
    since: str
    labels: dict[str, str]
    summary: str
    description: str
    runbook: str


@dataclass(frozen=True)
class Watch:
    """What fires, the gravest first, and what it was judged by: `rules` over `answering` of `targets`."""

    firing: list[FiringAlert]
    rules: int
    targets: int
    answering: int


def watch(url: str) -> Watch:
    """What a Prometheus says now. Raises UserError if it cannot be asked, or has no rules of Reelscale."""
    groups = _ask(url, "rules?type=alert", "groups")
    rules = [rule for group in groups for rule in group["rules"] if rule["name"].startswith(_PREFIX)]
    if not rules:
        raise UserError(
            "this Prometheus has no alerts of Reelscale",
            url,
            "reelscale monitor up writes them; have it read that folder's rules/*.yml",
        )
    targets = _ask(url, "targets?state=active", "activeTargets")
    health = [target["health"] for target in targets if target["labels"].get("job") == JOB]
    firing = [_alert(rule["name"], each) for rule in rules for each in rule["alerts"] if each["state"] == "firing"]
    firing.sort(key=lambda each: (_gravity(each.severity), each.since))
    return Watch(firing, len(rules), len(health), health.count("up"))


def _alert(name: str, alert: dict[str, Any]) -> FiringAlert:
    labels = {key: value for key, value in alert["labels"].items() if key not in ("alertname", "severity")}
    texts = {key: " ".join(text.split()) for key, text in alert["annotations"].items()}
    return FiringAlert(
        name,
        alert["labels"].get("severity", ""),
        alert["activeAt"],
        labels,
        texts.get("summary", ""),
        texts.get("description", ""),
        texts.get("runbook", ""),
    )


def _gravity(severity: str) -> int:
    return _SEVERITIES.index(severity) if severity in _SEVERITIES else len(_SEVERITIES)


def _ask(url: str, what: str, part: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/{what}", timeout=_TIMEOUT_SECONDS) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"][part]
            return found
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        reason = visible(getattr(error, "reason", None) or error or type(error).__name__)
        raise UserError(
            f"Prometheus cannot be asked: {reason}", url, "start it by reelscale monitor up, or name its URL by --url"
        ) from error
