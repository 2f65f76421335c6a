"""The folder from which Prometheus and Grafana run: configuration, rules and dashboards, written anew each time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cluster.monitor.prometheus.dashboards import dashboards
from cluster.monitor.prometheus.scrape_config import (
    ScrapeSettings,
    grafana_dashboards,
    grafana_datasource,
    prometheus_config,
)
from cluster.monitor.targets import targets_folder
from sharding.base.atomic import atomic_write_bytes
from sharding.base.errors import UserError
from sharding.base.user_paths import expanded


@dataclass(frozen=True)
class MonitoringFolder:
    """Where what lies: all below `path`, which is absolute."""

    path: Path

    @property
    def config(self) -> Path:
        """Prometheus' configuration."""
        return self.path / "prometheus.yml"

    @property
    def data(self) -> Path:
        """What Prometheus has scraped."""
        return self.path / "data"

    @property
    def provisioning(self) -> Path:
        """What Grafana is to be started with, as GF_PATHS_PROVISIONING."""
        return self.path / "grafana" / "provisioning"

    @property
    def dashboards(self) -> Path:
        """Grafana's dashboards, as JSON."""
        return self.path / "grafana" / "dashboards"


def rule_files() -> dict[str, str]:
    """Name → YAML of the recording and alerting rules."""
    rules = resources.files("cluster.monitor.prometheus") / "rules"
    return {each.name: each.read_text(encoding="utf-8") for each in rules.iterdir() if each.name.endswith(".yml")}


def write_folder(path: Path, settings: ScrapeSettings, url: str) -> MonitoringFolder:
    """Write the folder, over what is in it; scraped data stays. `url`: of the Prometheus that Grafana is to ask.

    Raises UserError for a file of `settings` that is not there, or a folder that cannot be written to.
    """
    for name in ("token_file", "password_file", "ca_file", "cert_file", "key_file"):
        file = getattr(settings, name)
        if file and not expanded(file).is_file():
            raise UserError(
                "no such file", f"--{name.replace('_', '-')} {file}", "name a file that Prometheus may read"
            )
    folder, targets = MonitoringFolder(expanded(path).absolute()), targets_folder(settings.targets)
    texts = {folder.config: prometheus_config(settings, targets)}
    texts |= {folder.path / "rules" / name: text for name, text in rule_files().items()}
    texts |= {folder.dashboards / f"{name}.json": json.dumps(each, indent=1) for name, each in dashboards().items()}
    texts[folder.provisioning / "datasources" / "reelscale.yml"] = grafana_datasource(url)
    texts[folder.provisioning / "dashboards" / "reelscale.yml"] = grafana_dashboards(folder.dashboards)
    try:
        targets.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(file, text.encode())
    except OSError as error:
        where = str(error.filename or folder.path)
        raise UserError(f"cannot be written to: {error.strerror}", where, "name another folder by --folder") from error
    return folder
