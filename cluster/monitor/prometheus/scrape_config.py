"""What Prometheus scrapes, and what Grafana shows of it, as configuration: settings in, YAML out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, model_validator

from cluster.monitor.targets import JOB
from sharding.base.settings import Settings
from sharding.base.user_paths import absolute

SCRAPE_SECONDS = 10
DATASOURCE = "reelscale-prometheus"  # the uid by which Grafana calls it
_TARGET = r"^(https?://)?[^\s/:]+:\d+$"


class ScrapeSettings(Settings):
    """Which processes are scraped, and what they are shown to be let in."""

    targets: Annotated[
        str | None,
        Field(
            description="folder in which processes name their endpoints (monitor.targets); unless named: the cache's"
        ),
    ] = None
    target: Annotated[
        tuple[Annotated[str, Field(pattern=_TARGET)], ...],
        Field(description="HOST:PORT of an endpoint of another machine, https:// before it where it has TLS"),
    ] = ()
    kubernetes: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            description="namespace of `launch kuberay`'s pods; Debian's Prometheus has no such discovery",
        ),
    ] = None
    token_file: Annotated[str | None, Field(description="file with the bearer token that endpoints want")] = None
    user: Annotated[str | None, Field(description="name for endpoints that want a password")] = None
    password_file: Annotated[str | None, Field(description="file with that name's password")] = None
    ca_file: Annotated[str | None, Field(description="certificates (PEM) by which endpoints with TLS are known")] = None
    cert_file: Annotated[
        str | None, Field(description="certificate (PEM) that is shown to endpoints with monitor.tls.clients")
    ] = None
    key_file: Annotated[str | None, Field(description="its private key (PEM), without a password")] = None

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together: name both or none")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: name both or none")
        if self.token_file and self.user:
            raise ValueError("an endpoint wants a token or a password: name token_file or user, not both")
        return self


def prometheus_config(settings: ScrapeSettings, targets: Path) -> str:
    """prometheus.yml, with paths of rules relative to itself. `targets`: the folder of target files, absolute."""
    access = _access(settings)
    jobs: list[dict[str, Any]] = [
        {
            "job_name": JOB,
            # What a process says of itself is not renamed for what its target file says.
            "honor_labels": True,
            **access,
            "file_sd_configs": [{"files": [f"{targets}/*.json"], "refresh_interval": "15s"}],
        }
    ]
    if settings.target:
        jobs.append(
            {
                "job_name": f"{JOB}-static",
                "honor_labels": True,
                **access,
                "static_configs": [
                    {
                        "targets": [each.removeprefix(f"{scheme}://") for each in named],
                        "labels": {"job": JOB, "discovery": "static", "__scheme__": scheme},
                    }
                    for scheme in ("http", "https")
                    if (named := [each for each in settings.target if _scheme(each) == scheme])
                ],
            }
        )
    if settings.kubernetes:
        jobs.append({"job_name": f"{JOB}-kubernetes", "honor_labels": True, **access, **_pods(settings.kubernetes)})
    seconds = f"{SCRAPE_SECONDS}s"
    return _yaml(
        {
            "global": {"scrape_interval": seconds, "scrape_timeout": "8s", "evaluation_interval": seconds},
            "rule_files": ["rules/*.yml"],
            "scrape_configs": jobs,
        }
    )


def grafana_datasource(url: str) -> str:
    """Grafana's provisioning of the Prometheus at a URL."""
    source = {
        "name": "Reelscale",
        "uid": DATASOURCE,
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "jsonData": {"timeInterval": f"{SCRAPE_SECONDS}s", "httpMethod": "POST"},
    }
    return _yaml({"apiVersion": 1, "datasources": [source]})


def grafana_dashboards(folder: Path) -> str:
    """Grafana's provisioning of the dashboards in a folder, absolute."""
    provider = {"name": "Reelscale", "folder": "Reelscale", "type": "file", "options": {"path": str(folder)}}
    return _yaml({"apiVersion": 1, "providers": [provider]})


def _scheme(target: str) -> str:
    return "https" if target.startswith("https://") else "http"


def _access(settings: ScrapeSettings) -> dict[str, Any]:
    """What a scrape shows: Prometheus reads the files itself, at each scrape."""
    access: dict[str, Any] = {}
    if settings.token_file:
        access["authorization"] = {"credentials_file": absolute(settings.token_file)}
    if settings.user and settings.password_file:
        access["basic_auth"] = {"username": settings.user, "password_file": absolute(settings.password_file)}
    files = {"ca_file": settings.ca_file, "cert_file": settings.cert_file, "key_file": settings.key_file}
    if certificates := {name: absolute(file) for name, file in files.items() if file}:
        access["tls_config"] = certificates
    return access


def _pods(namespace: str) -> dict[str, Any]:
    """Discovery of the endpoints of pods by what `cluster/launch/kuberay.py` writes: annotations and ports' names."""
    pod, annotation = "__meta_kubernetes_pod", "__meta_kubernetes_pod_annotation_prometheus_io"
    return {
        "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": [namespace]}}],
        "relabel_configs": [
            {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
            {"source_labels": [f"{pod}_container_port_name"], "regex": "reelscale.*", "action": "keep"},
            {"source_labels": [f"{pod}_phase"], "regex": "Succeeded|Failed", "action": "drop"},
            {"source_labels": [f"{annotation}_path"], "regex": "(.+)", "target_label": "__metrics_path__"},
            {"source_labels": [f"{annotation}_scheme"], "regex": "(https?)", "target_label": "__scheme__"},
            {"source_labels": [f"{pod}_name"], "target_label": "pod"},
            {"target_label": "job", "replacement": JOB},
            {"target_label": "discovery", "replacement": "kubernetes"},
        ],
    }


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
