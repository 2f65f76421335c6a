"""KubeRay's manifests, against KubeRay's own schema and Kubernetes'; nothing secret, and saved before a pod goes."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.launch.kuberay import KubeRaySettings, manifests, save_hook
from sharding.base.errors import UserError
from sharding.base.settings import validate

KUBERNETES = "1.36"
LEAST: dict[str, Any] = {"image": "registry.example/reelscale:1", "nodes": 2, "gpus_per_node": 8}
ALL: dict[str, Any] = LEAST | {
    "name": "sports1m",
    "namespace": "video",
    "ray_version": "2.60.0",
    "pull_secret": "pull",
    "service_account": "trainer",
    "node_labels": {"nvidia.com/gpu.product": "NVIDIA-H200"},
    "claim": "shared-data",
    "secrets": ["s3-keys", "more.keys"],
    "auth_secret": "ray-token",
    "submission": "SidecarMode",
}
COMMAND = ["reelscale", "pretrain", "/etc/reelscale/recipe.yaml", "loss={kind: softmax}", "run=/data/runs/it's"]


def settings(**values: Any) -> KubeRaySettings:
    return validate(KubeRaySettings, values, "the options")


def objects(**values: Any) -> list[dict[str, Any]]:
    text = manifests(settings(**values), COMMAND, "/data/runs/sports1m", "lanes: 8\nname: 'ö'\n")
    return list(yaml.safe_load_all(text))


def strict(schema: Any) -> Any:
    """A structural schema that refuses fields that it does not name, as an API server does on request."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    path = Path(__file__).parent / "schemas" / "rayjob-spec.json"
    return strict(json.loads(path.read_text()))


def check(each: dict[str, Any], schema: dict[str, Any]) -> None:
    """Raise for an object that Kubernetes or KubeRay would refuse."""
    if each["apiVersion"] == "v1":
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
        return
    assert each["apiVersion"] == "ray.io/v1"
    whole = schema if each["kind"] == "RayJob" else schema["properties"]["rayClusterSpec"]
    jsonschema.Draft202012Validator(whole).validate(each["spec"])
    metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": each["metadata"]}
    kubernetes_validate.validate(metadata, KUBERNETES, strict=True)
    for template in pods(each):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def pods(each: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = each["spec"].get("rayClusterSpec", each["spec"])
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
@pytest.mark.parametrize("values", [LEAST, ALL, LEAST | {"gpus_per_node": 0}], ids=["least", "all", "no GPU"])
def test_kubernetes_and_kuberay_take_the_manifests(values: dict[str, Any], kind: str, schema: dict[str, Any]) -> None:
    made = objects(**values, kind=kind)
    assert [each["kind"] for each in made] == (["ConfigMap", "RayJob"] if kind == "RayJob" else ["RayCluster"])
    for each in made:
        check(each, schema)


def test_the_schemas_refuse_what_is_wrong(schema: dict[str, Any]) -> None:
    _, job = objects(**ALL)
    cluster = job["spec"]["rayClusterSpec"]
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check(wrong, schema)
    wrong = copy.deepcopy(job)
    wrong["spec"]["backoffLimit"] = "three"
    with pytest.raises(jsonschema.ValidationError, match="three"):
        check(wrong, schema)
    wrong = copy.deepcopy(job)
    pods(wrong)[1]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["ports"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="ports"):
        check(wrong, schema)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}


def test_a_worker_has_its_gpus_its_probes_and_time_to_save() -> None:
    _, job = objects(**ALL)
    head, worker = pods(job)
    container = worker["spec"]["containers"][0]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 8
    )
    assert "nvidia.com/gpu" not in head["spec"]["containers"][0]["resources"]["limits"]
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 2
    assert {"livenessProbe", "readinessProbe"} <= set(container)
    assert worker["spec"]["terminationGracePeriodSeconds"] == 600
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1] == save_hook("/data/runs/sports1m", shared=True)
    annotations = worker["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9480" and annotations["prometheus.io/scheme"] == "http"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": 8080} | {f"reelscale-{number}": 9480 + number for number in range(8)}
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    assert shlex.split(job["spec"]["entrypoint"]) == COMMAND


def test_secrets_are_named_and_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    text = manifests(settings(**ALL), COMMAND, "/data/runs/sports1m", "lanes: 8\n")
    assert "wJalrXUtnFEMI" not in text and "kind: Secret" not in text
    for pod in pods(list(yaml.safe_load_all(text))[1]):
        container = pod["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}, {"secretRef": {"name": "more.keys"}}]
        assert "env" not in container and pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize("shared", [True, False])
def test_the_hook_saves_a_run_under_way_and_holds_up_no_other(tmp_path: Path, shared: bool) -> None:
    run = tmp_path / "a run's"
    run.mkdir()
    hook = ["/bin/sh", "-c", save_hook(str(run), shared)]
    assert subprocess.run(hook, timeout=60, check=False).returncode == 0 and not (run / "stop").exists()
    (run / "begun").write_text(str(os.getpid()))
    process = subprocess.Popen(hook)
    deadline = time.monotonic() + 60
    while not (run / "stop").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None and (run / "stop").exists()
    (run / "stop").unlink()
    assert process.wait(timeout=60) == 0
    if not shared:
        with subprocess.Popen(["true"]) as ended:
            pass
        (run / "begun").write_text(str(ended.pid))
        assert subprocess.run(hook, timeout=60, check=False).returncode == 0 and not (run / "stop").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "Sports"}, "name: found 'Sports'"),
        ({"name": "a" * 48}, "name: found"),
        ({"name": "ends-"}, "name: found"),
        ({"namespace": "a.b"}, "namespace: found 'a.b'"),
        ({"claim": "no/claim"}, "claim: found"),
        ({"secrets": ["a key"]}, "secrets.0: found 'a key'"),
        ({"memory": "128GB"}, "memory: found '128GB'"),
        ({"image": "two words"}, "image: found"),
        ({"mount": "data"}, "mount: found"),
        ({"nodes": 0}, "nodes: found 0"),
        ({"submission": "InteractiveMode"}, "submission: found"),
    ],
)
def test_names_that_kubernetes_refuses_are_refused_here(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        settings(**LEAST | values)
    assert words in refused.value.what
