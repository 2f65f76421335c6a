"""KubeRay manifests for a training run: settings in, Kubernetes objects out, as YAML.

Secrets are named and never read: pods get their values from Kubernetes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from pretrain.resilience.stop_signal import BEGUN_FILE, STOP_FILE
from sharding.base.settings import Settings, unit

RECIPE = PurePosixPath("/etc/reelscale/recipe.yaml")  # in the pods
LOCAL_FOLDER = "/tmp/reelscale"  # of a pod, which goes with it
_AGENT_PORT, _RAY_METRICS_PORT = 52365, 8080
_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"  # RFC 1035
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"  # RFC 1123

Label = Annotated[str, Field(pattern=_LABEL, max_length=63)]
ObjectName = Annotated[str, Field(pattern=_SUBDOMAIN, max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]


class KubeRaySettings(Settings):
    """A RayJob with a cluster of its own, or that cluster alone."""

    kind: Annotated[
        Literal["RayJob", "RayCluster"],
        Field(description="RayJob: the run, with a cluster while it lasts; RayCluster: the cluster alone"),
    ] = "RayJob"
    name: Annotated[  # KubeRay makes longer names of it
        Label, Field(max_length=47, description="the objects' name")
    ] = "reelscale"
    namespace: Annotated[Label | None, Field(description="the namespace; unless named: kubectl's")] = None
    image: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][\w.:/@-]*$", description="the image, with Reelscale and Ray in it")
    ]
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$", description="the image's version of Ray")] = "2.60.0"
    pull_secret: Annotated[ObjectName | None, Field(description="the Secret by which images are pulled")] = None
    service_account: Annotated[ObjectName | None, Field(description="the pods' service account")] = None
    nodes: Annotated[int, Field(json_schema_extra=unit("nodes"), ge=1, le=2**16, description="worker pods")]
    gpus_per_node: Annotated[
        int, Field(json_schema_extra=unit("GPUs"), ge=0, le=1024, description="GPUs of a worker pod, a rank each")
    ]
    ranks_per_node: Annotated[
        int, Field(json_schema_extra=unit("ranks"), ge=1, le=1024, description="ranks of a worker pod without GPUs")
    ] = 1
    gpu: Annotated[
        str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", description="the GPUs' resource, as the node names it")
    ] = "nvidia.com/gpu"
    cpus: Annotated[Quantity, Field(description="CPUs of a worker pod")] = "16"
    memory: Annotated[Quantity, Field(description="memory of a worker pod")] = "128Gi"
    shared_memory: Annotated[Quantity, Field(description="of a pod's memory for /dev/shm, by which NCCL copies")] = (
        "16Gi"
    )
    head_cpus: Annotated[Quantity, Field(description="CPUs of the head pod, which trains nothing")] = "4"
    head_memory: Annotated[Quantity, Field(description="memory of the head pod")] = "16Gi"
    node_labels: Annotated[
        dict[str, str], Field(description="labels of the nodes for worker pods, e.g. of a GPU's kind")
    ] = Field(default_factory=dict)
    claim: Annotated[
        ObjectName | None,
        Field(description="a PersistentVolumeClaim that all pods mount (ReadWriteMany); unless named: none"),
    ] = None
    mount: Annotated[str, Field(pattern=r"^/[^:\s]*$", description="where the claim is mounted")] = "/data"
    secrets: Annotated[
        tuple[ObjectName, ...], Field(description="Secrets whose keys become variables, e.g. AWS_ACCESS_KEY_ID")
    ] = ()
    auth_secret: Annotated[
        ObjectName | None,
        Field(description="the Secret with Ray's token (auth_token); unless named: KubeRay makes one"),
    ] = None
    submission: Annotated[
        Literal["K8sJobMode", "HTTPMode", "SidecarMode"], Field(description="how KubeRay submits the entrypoint")
    ] = "K8sJobMode"
    retries: Annotated[
        int,
        Field(json_schema_extra=unit("retries"), ge=0, le=1000, description="new clusters after one that failed"),
    ] = 3
    keep_seconds: Annotated[
        int, Field(json_schema_extra=unit("seconds"), ge=0, le=2**31 - 1, description="that a cluster outlives its run")
    ] = 300
    save_seconds: Annotated[
        int,
        Field(json_schema_extra=unit("seconds"), ge=1, le=86400, description="that a pod which is to go may save for"),
    ] = 600
    metrics_port: Annotated[
        int,
        Field(ge=1024, le=64000, description="TCP port of a pod's first rank for metrics; those of the others follow"),
    ] = 9480

    @property
    def ranks_of_pod(self) -> int:
        """Ranks that a worker pod has room for."""
        return self.gpus_per_node or self.ranks_per_node

    @property
    def ranks(self) -> int:
        """Ranks that the pods have room for."""
        return self.nodes * self.ranks_of_pod

    @property
    def folder(self) -> str:
        """The folder in the pods for what runs make: of the claim, else of each pod alone."""
        return self.mount if self.claim else LOCAL_FOLDER

    def shares(self, path: str) -> bool:
        """Whether all pods see a path or file URL: below the claim's mount. What is relative is each pod's own."""
        local = path.partition("://")[2] if path.startswith(("file://", "local://")) else path
        return self.claim is not None and PurePosixPath(os.path.normpath(local)).is_relative_to(self.mount)


def manifests(
    settings: KubeRaySettings, command: Sequence[str], run: str, recipe: str, metrics_scheme: str = "http"
) -> str:
    """The objects as YAML: a ConfigMap with the recipe and a RayJob that runs `command`; or a RayCluster.

    `run`: the run's folder in the pods, at which a pod that is to go asks the run to save and stop. `metrics_scheme`:
    by which ranks serve their metrics.
    """
    cluster = _cluster(settings, run, metrics_scheme)
    if settings.kind == "RayCluster":
        return _yaml([_object(settings, "ray.io/v1", "RayCluster", spec=cluster)])
    job = {
        "entrypoint": shlex.join(command),
        "submissionMode": settings.submission,
        "backoffLimit": settings.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.keep_seconds,
        "rayClusterSpec": cluster,
    }
    recipe_map = _object(settings, "v1", "ConfigMap", data={RECIPE.name: recipe})
    return _yaml([recipe_map, _object(settings, "ray.io/v1", "RayJob", spec=job)])


class _Dumper(yaml.SafeDumper):
    """PyYAML's own, with texts of several lines as they are, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A text as a node: a block where it has lines, as far as YAML can write it so."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def _yaml(objects: list[dict[str, Any]]) -> str:
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _object(settings: KubeRaySettings, version: str, kind: str, **content: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": settings.name, "labels": {"app.kubernetes.io/name": "reelscale"}}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _cluster(settings: KubeRaySettings, run: str, metrics_scheme: str) -> dict[str, Any]:
    """The spec of a RayCluster: a head that trains nothing, and a group of worker pods, one a node."""
    auth = {"mode": "token"} | ({"secretName": settings.auth_secret} if settings.auth_secret else {})
    head = {"cpu": settings.head_cpus, "memory": settings.head_memory}
    worker: dict[str, Any] = {"cpu": settings.cpus, "memory": settings.memory}
    if settings.gpus_per_node:
        worker[settings.gpu] = settings.gpus_per_node
    # Prometheus' discovery of pods makes a target of each port; an annotation can name the first alone.
    of_ranks = {f"reelscale-{number}": settings.metrics_port + number for number in range(settings.ranks_of_pod)}
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": _RAY_METRICS_PORT}
    return {
        "rayVersion": settings.ray_version,
        "authOptions": auth,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod(settings, "ray-head", head, ports, _annotations(_RAY_METRICS_PORT, "http"), {}),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": settings.nodes,
                "minReplicas": settings.nodes,
                "maxReplicas": settings.nodes,
                "rayStartParams": {},
                "template": _pod(
                    settings,
                    "ray-worker",
                    worker,
                    {"metrics": _RAY_METRICS_PORT, **of_ranks},
                    _annotations(settings.metrics_port, metrics_scheme),
                    _worker_only(settings, run),
                ),
            }
        ],
    }


def _worker_only(settings: KubeRaySettings, run: str) -> dict[str, Any]:
    """What a worker's pod has beside a head's: time and a hook to save, nodes with GPUs, a node of its own."""
    spec: dict[str, Any] = {"terminationGracePeriodSeconds": settings.save_seconds}
    if settings.node_labels:
        spec["nodeSelector"] = dict(settings.node_labels)
    if settings.gpus_per_node:
        spec["tolerations"] = [{"key": settings.gpu, "operator": "Exists", "effect": "NoSchedule"}]
    same = {"matchLabels": {"ray.io/node-type": "worker", "reelscale/run": settings.name}}
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": same}
    spec["affinity"] = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": apart}]
        }
    }
    hook = ["/bin/sh", "-c", save_hook(run, shared=settings.shares(run))]
    return {"spec": spec, "lifecycle": {"preStop": {"exec": {"command": hook}}}}


def save_hook(run: str, shared: bool) -> str:
    """A shell command that asks a run under way to save and stop, and waits until it has; else it ends at once.

    `shared`: the run's folder is all pods', and the driver takes `begun` away at the end; else it is the pod's of
    rank 0 alone, and the process counts whose id is in it.
    """
    begun, stop = (shlex.quote(f"{run}/{name}") for name in (BEGUN_FILE, STOP_FILE))
    under_way = f"[ -e {begun} ]" if shared else f'kill -0 "$(cat {begun})"'
    return f"{under_way} || exit 0; touch {stop}; while [ -e {stop} ] && {under_way}; do sleep 1; done"


def _pod(
    settings: KubeRaySettings,
    container: str,
    resources: dict[str, Any],
    ports: dict[str, int],
    annotations: dict[str, str],
    more: dict[str, Any],
) -> dict[str, Any]:
    """A pod's template with one container. `more`: fields of the pod's spec, and the container's lifecycle."""
    volumes, mounts = _volumes(settings)
    main: dict[str, Any] = {
        "name": container,
        "image": settings.image,
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "volumeMounts": mounts,
        "livenessProbe": _probe(first=30, failures=120),  # KubeRay's own: a node under load may be slow for minutes
        "readinessProbe": _probe(first=10, failures=10),
    }
    if settings.secrets:
        main["envFrom"] = [{"secretRef": {"name": name}} for name in settings.secrets]
    if "lifecycle" in more:
        main["lifecycle"] = more["lifecycle"]
    spec: dict[str, Any] = {"containers": [main], "volumes": volumes, **more.get("spec", {})}
    if settings.pull_secret:
        spec["imagePullSecrets"] = [{"name": settings.pull_secret}]
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    labels = {"reelscale/run": settings.name}
    return {"metadata": {"annotations": annotations, "labels": labels}, "spec": spec}


def _annotations(port: int, scheme: str) -> dict[str, str]:
    """The pod's annotations by which many a Prometheus finds what it serves."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/scheme": scheme,
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }


def _probe(first: int, failures: int) -> dict[str, Any]:
    """A probe of Ray's agent, which answers for its node.

    Not of /healthz and /readyz, which are a rank's: KubeRay submits the run once the pods are ready, before there is
    one, and a pod outlives the ranks of an attempt.
    """
    return {
        "httpGet": {"path": "/api/healthz", "port": _AGENT_PORT},
        "initialDelaySeconds": first,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _volumes(settings: KubeRaySettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's volumes, and where its container mounts them."""
    volumes: dict[str, tuple[dict[str, Any], str]] = {
        "shared-memory": ({"emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}}, "/dev/shm"),
    }
    if settings.kind == "RayJob":
        volumes["recipe"] = ({"configMap": {"name": settings.name}}, str(RECIPE.parent))
    if settings.claim:
        volumes["data"] = ({"persistentVolumeClaim": {"claimName": settings.claim}}, settings.mount)
    return (
        [{"name": name, **source} for name, (source, _) in volumes.items()],
        [{"name": name, "mountPath": path} for name, (_, path) in volumes.items()],
    )
