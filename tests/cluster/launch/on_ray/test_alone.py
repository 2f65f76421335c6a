"""A Ray cluster that a command starts for itself: nobody else reaches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROGRAM = """
import ipaddress, json, os, pathlib, psutil
from cluster.launch.on_ray.cluster import ray_cluster

def listening(process):
    return [each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]

with ray_cluster() as ray:
    token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    seen = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN_PATH"]).remote())
    me = psutil.Process()
    addresses = [address for process in [me, *me.children(recursive=True)] for address in listening(process)]
    said = {"addresses": addresses, "mode": token.parent.stat().st_mode & 0o777, "same": seen == str(token)}
    said["commands"] = [" ".join(process.cmdline()) for process in me.children(recursive=True)]
    said["secret"] = token.read_text()
print(json.dumps(said | {"left": token.exists()}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    home = tmp_path_factory.mktemp("home")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**variables, "PYTHONPATH": str(ROOT), "HOME": str(home)}, cwd=home,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (home / ".ray").exists()
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_it_listens_on_loopback_alone(seen: dict[str, object]) -> None:
    addresses = seen["addresses"]
    assert isinstance(addresses, list) and len(addresses) >= 4
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_its_token_is_its_own_and_goes_with_it(seen: dict[str, object]) -> None:
    assert seen["mode"] == 0o700 and seen["same"] and not seen["left"]
    assert isinstance(seen["commands"], list) and not any(str(seen["secret"]) in words for words in seen["commands"])


LEAVES_A_THREAD = """
import threading, time
from cluster.launch.on_ray.cluster import kill_actors, ray_cluster

class Slow:
    def run(self):
        time.sleep(1000)

with ray_cluster() as ray:
    slow = ray.remote(num_cpus=0)(Slow).remote()

    def wait():
        try:
            ray.get(slow.run.remote())
        except ray.exceptions.RayActorError:
            print("its actor is gone", flush=True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while thread.is_alive():
        kill_actors(ray, "Other")
        kill_actors(ray, "Slow")
        thread.join(0.2)
raise SystemExit(75)
"""


def test_a_thread_that_waits_for_an_actor_is_freed_before_the_end() -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_A_THREAD], env={**variables, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (75, "its actor is gone\n"), done.stderr
