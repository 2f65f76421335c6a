"""What the environment says of this process, and what is handed on to children."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sharding.base import environment

ROOT = Path(__file__).parents[3]
SETS_THEM = {  # for libraries that read them themselves, or for the processes that it starts
    "cluster/launch/local.py",
    "cluster/launch/on_ray/cluster.py",
    "cluster/launch/on_ray/folder.py",
    "cluster/launch/tuning/tuner.py",
    "pretrain/engine/distributed.py",
    "pretrain/engine/deepspeed_import.py",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "AWS_", "XDG_", "REELSCALE_", "TORCHELASTIC_")) or "RANK" in name:
            monkeypatch.delenv(name)
    for name in (
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TMPDIR",
        "RAY_ADDRESS",
        "REQUESTS_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)


def test_variables_are_read_in_one_place() -> None:
    files = [file for package in ("sharding", "pretrain", "cluster") for file in (ROOT / package).rglob("*.py")]
    reading = {str(file.relative_to(ROOT)) for file in files if "os.environ" in file.read_text(encoding="utf-8")}
    assert reading - SETS_THEM == {"sharding/base/environment.py"}


def test_a_process_of_its_own() -> None:
    assert environment.is_first_rank() and not environment.is_rank() and environment.world_size() is None
    assert (environment.rank(), environment.local_rank(), environment.local_world_size()) == (0, 0, 1)
    assert not environment.is_torchrun() and environment.slurm_task() is None
    assert not environment.is_followed()
    assert environment.s3_endpoint() is None and environment.ca_bundle() is None and environment.aws_variables() == ()
    assert environment.ray_address() is None and environment.temporary_folder() == "TMPDIR"


def test_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert environment.is_rank() and environment.rank() == 3 and not environment.is_first_rank()
    assert environment.world_size() is None  # a variable of that name may be anyone's
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert (environment.world_size(), environment.local_rank(), environment.local_world_size()) == (4, 1, 2)
    assert environment.is_torchrun() and not environment.torchrun_hosts_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert environment.torchrun_hosts_store()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} & set(environment.without_rank())
    alone = environment.as_only_rank(1234)
    assert alone["RANK"] == "0" and alone["WORLD_SIZE"] == alone["LOCAL_WORLD_SIZE"] == "1"
    assert alone["LOCAL_RANK"] == "1", "the device is this rank's"
    assert (alone["MASTER_ADDR"], alone["MASTER_PORT"]) == ("127.0.0.1", "1234")
    assert not [name for name in alone if name.startswith("TORCHELASTIC_")] and alone["PATH"] == os.environ["PATH"]


def test_a_rank_of_the_deepspeed_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_SIZE", "4")
    assert environment.local_world_size() == 4


def test_a_process_becomes_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment.become_rank("2", "4", "0")
    assert (environment.rank(), environment.world_size(), environment.local_rank()) == (2, 4, 0)
    environment.become_only_rank(1234)
    assert (environment.rank(), environment.world_size()) == (0, 1)
    assert environment.meeting_place() == "127.0.0.1:1234"


def test_a_task_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert environment.slurm_task() is None  # alone it is a machine like others
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("MASTER_ADDR", "node")
    assert environment.slurm_task() == environment.SlurmTask("5", "8", "1", ("MASTER_PORT",))
    monkeypatch.setenv("RANK", "0")
    assert environment.slurm_task() is None


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / ".cache" / "reelscale"
    assert environment.data_folders() == ["~/.local/share"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("XDG_DATA_DIRS", "/a:/b")
    assert environment.cache_folder() == Path("/cache/reelscale")
    monkeypatch.setenv("XDG_DATA_HOME", "/home/data")
    assert environment.data_folders() == ["/home/data", "/a", "/b"]
    monkeypatch.setenv("REELSCALE_CACHE", "/mine")
    assert environment.cache_folder() == Path("/mine")


def test_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all")
    assert environment.s3_endpoint() == "http://all"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert environment.s3_endpoint() == "http://s3"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    assert [name for name, _ in environment.aws_variables()] == [
        "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    ]  # fmt: skip
    monkeypatch.setenv("REELSCALE_FOLLOWED", "1")
    assert environment.is_followed()


def test_a_ray_cluster_is_taken_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "here:1")
    environment.use_ray_cluster("there:2")
    assert environment.ray_address() == "there:2"
    assert environment.of_a_stage() == {**os.environ, "PYTHONUNBUFFERED": "1"}
