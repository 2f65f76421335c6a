"""Ray: whether it can be imported, and the nodes of a cluster: do they answer, with what versions?"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.jobs.doctor.finding import Verdict, ok, skipped, warning, wrong
from cluster.jobs.doctor.network import host_of
from cluster.jobs.doctor.probe import TrialFailed, tried
from cluster.jobs.doctor.versions import check_ray_version, installed_version
from cluster.launch.on_ray.cluster import ray_cluster
from cluster.launch.on_ray.nodes import NodeProbe, alive_nodes
from sharding.base import environment

_SECONDS = 150.0
_NODE_SECONDS = 60.0  # in which a node has to start a worker that answers
_LOOK_SECONDS = 1.0
_PACKAGES = ("ray", "torch", "reelscale")
_CONNECT_SECONDS = 10.0
_START = "start it there (ray start --head), correct the address, and let the firewall pass its port"
_MISMATCH = "Version mismatch"  # in Ray's error (2.59, 2.60) where a cluster has another Ray or Python than we
_SAME = "install the same Python, Ray, torch and Reelscale on all nodes and here, by one constraints.txt"


@dataclass(frozen=True)
class NodeVersions:
    """What a node of the cluster has: the version of Python and packages; None: it did not answer."""

    address: str
    versions: Mapping[str, str | None] | None


def check_ray() -> Verdict:
    """Whether Ray, where it is installed, is one that Reelscale asks for and can be imported."""
    verdict = check_ray_version()
    if verdict.state == "ok":
        tried(import_ray, seconds=_SECONDS)
    return verdict


def check_ray_cluster() -> Verdict:
    """Whether the cluster of RAY_ADDRESS takes this command, and its nodes have the versions that this machine has."""
    address = environment.ray_address()
    if not address:
        return skipped("no cluster was named: --address HOST:PORT or RAY_ADDRESS does")
    if installed_version("ray") is None:
        return wrong(f"{address} cannot be reached: Ray is not installed", "pip install -c constraints.txt -e '.[ray]'")
    if problem := refusal(address):
        return wrong(f"{address}: nothing answers there ({problem})", _START)
    try:
        nodes = tried(nodes_of_cluster, seconds=_SECONDS)
    except TrialFailed as error:
        return failure_verdict(address, str(error))
    return nodes_verdict(address, own_versions(), nodes)


def nodes_verdict(address: str, own: Mapping[str, str | None], nodes: Sequence[NodeVersions]) -> Verdict:
    """Of this machine's versions and those of the cluster's nodes."""
    silent = [node.address for node in nodes if node.versions is None]
    others = [line for node in nodes if node.versions is not None and (line := _differences(own, node))]
    silence = f"{', '.join(silent)} did not answer" if silent else ""
    if others:
        return wrong(
            "; ".join([f"{address}: nodes differ from this machine", *others, *filter(None, [silence])]), _SAME
        )
    if silent:
        what = f"{address}: of {len(nodes)} nodes {silence} within {_NODE_SECONDS:.0f} s"
        return warning(what, "see `ray status`, and the raylet's log there in /tmp/ray/session_latest/logs")
    return ok(f"{address}: {len(nodes)} nodes answer, with Python, Ray, torch and Reelscale as here")


def failure_verdict(address: str, why: str) -> Verdict:
    """Of a cluster with which no connection came about."""
    if _MISMATCH in why:
        return wrong(f"{address} has another Ray or Python: {why[why.index(_MISMATCH) :]}", _SAME)
    remedy = "see `ray status` on the head node, and that its ports (6379, and those of its workers) pass the firewall"
    return wrong(f"{address}: {why}", remedy)


def refusal(address: str) -> str:
    """Why no connection to HOST:PORT of a Ray cluster comes about; "" if one does, or the address is a word of Ray's.

    Ray itself would try for minutes.
    """
    host, port = host_of(address), address.rpartition(":")[2]
    if not (host and port.isdigit()):
        return ""
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    except (ValueError, OverflowError) as error:
        return str(error)
    return ""


def import_ray() -> str:
    """Ray's version by its module. Raises what the import raises."""
    import ray

    return str(ray.__version__)


def own_versions() -> dict[str, str | None]:
    """The version of this Python, and of the packages that all nodes should have alike."""
    import platform

    return {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}}


def nodes_of_cluster() -> list[NodeVersions]:
    """The live nodes of the cluster of RAY_ADDRESS, and what a task on each says of its versions.

    Raises UserError where the cluster does not answer, or does not take the token.
    """
    names = _PACKAGES

    def versions() -> dict[str, str | None]:  # inside, so that Ray sends its code along
        import importlib.metadata
        import platform

        result: dict[str, str | None] = {"python": platform.python_version()}
        for name in names:
            try:
                result[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                result[name] = None
        return result

    with ray_cluster() as ray:
        nodes, probe = alive_nodes(ray), NodeProbe(ray, versions, _NODE_SECONDS)
        answers: dict[str, dict[str, str | None] | None] = {}
        probe.ask(nodes)
        while probe.pending:
            answers |= probe.answers(_LOOK_SECONDS)
        return [NodeVersions(address, answers[node]) for node, address in nodes.items()]


def _differences(own: Mapping[str, str | None], node: NodeVersions) -> str:
    """How a node's versions differ from ours; "" if they do not. Of Python the first two numbers count."""
    theirs = node.versions or {}
    parts = [
        f"{name} {theirs.get(name) or 'is missing'} ({version or 'missing'} here)"
        for name, version in own.items()
        if _counts(name, theirs.get(name)) != _counts(name, version)
    ]
    return f"{node.address} has {', '.join(parts)}" if parts else ""


def _counts(name: str, version: str | None) -> str | None:
    """What of a version has to be alike: of Python not its last number, of torch not what it was built for."""
    if version is None:
        return None
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]
