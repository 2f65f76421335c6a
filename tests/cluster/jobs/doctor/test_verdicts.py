"""What each check makes of what it measured, by values: good ones, and every kind of bad one."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cluster.jobs.doctor.clock import clock_verdict, skew_verdict
from cluster.jobs.doctor.devices import deepspeed_verdict, gpus_verdict
from cluster.jobs.doctor.finding import Verdict
from cluster.jobs.doctor.folders import room_verdict, sockets_verdict
from cluster.jobs.doctor.limits import (
    GIB,
    Memory,
    cgroup_memory,
    memory_verdict,
    open_files_verdict,
    shared_memory_verdict,
)
from cluster.jobs.doctor.network import all_reduce_verdict, host_of, ports_verdict
from cluster.jobs.doctor.ray_cluster import NodeVersions, failure_verdict, nodes_verdict
from cluster.jobs.doctor.store import StoreTrial, store_verdict
from cluster.jobs.doctor.versions import libraries_verdict, package_verdict, python_verdict
from cluster.jobs.doctor.video import video_verdict
from pretrain.machine.all_reduce_trial import AllReduceTrial
from pretrain.machine.devices import Cuda, DeepSpeedTools, Gpu
from sharding.media.h264_trial import H264Trial

TAKEN, DENIED, NO_ADDRESS = errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL
TORCH = Requirement("torch>=2.11,<2.14")
BUSY = Memory(total=64 * GIB, available=40 * GIB)
H200 = Gpu("NVIDIA H200", 139 * GIB, "")
NO_KERNEL = Gpu("Tesla K80", 11 * GIB, "CUDA error: no kernel image is available")
OWN = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "reelscale": "0.1.0"}
GOOD_NODE = NodeVersions("10.0.0.1", OWN | {"python": "3.11.9", "torch": "2.13.0+cu130"})
OLD_NODE = NodeVersions("10.0.0.2", OWN | {"torch": "2.12.0", "reelscale": None})


@pytest.mark.parametrize(
    ("verdict", "state", "parts"),
    [
        (python_verdict("3.12.1", ">=3.11"), "ok", ["3.12.1"]),
        (python_verdict("3.10.4", ">=3.11"), "wrong", ["3.10.4", ">=3.11", "virtual environment"]),
        (package_verdict(TORCH, "2.13.0+cu130", "install"), "ok", ["2.13.0+cu130"]),
        (package_verdict(TORCH, "2.14.0", "install"), "wrong", ["2.14.0", "<2.14", "install"]),
        (package_verdict(TORCH, None, "install"), "wrong", ["torch is not installed"]),
        (libraries_verdict([TORCH], {"torch": "2.12"}), "ok", ["1 packages"]),
        (libraries_verdict([TORCH], {"torch": "1.0"}), "warning", ["torch 1.0", "constraints.txt"]),
        (libraries_verdict([TORCH, Requirement("av")], {"torch": "1.0", "av": None}), "wrong", ["av is not installed"]),
        (open_files_verdict(20_000, 20_000, ray=True), "ok", ["20,000"]),
        (open_files_verdict(-1, -1, ray=True), "ok", ["without a limit"]),
        (open_files_verdict(1024, 2**20, ray=True), "warning", ["1,024", "4,096", "ulimit -n 65536"]),
        (open_files_verdict(1024, 4096, ray=True), "warning", ["ulimit -n 4096"]),
        (open_files_verdict(1024, 2**20, ray=False), "ok", ["1,024"]),
        (open_files_verdict(64, 64, ray=False), "wrong", ["64 at a time", "beyond 64", "limits.conf"]),
        (shared_memory_verdict(8 * GIB, gpus=8, ray=True), "ok", ["8.0 GiB", "NCCL", "Ray"]),
        (shared_memory_verdict(64 * 2**20, gpus=8, ray=False), "warning", ["64 MiB", "NCCL", "--shm-size=8g"]),
        (shared_memory_verdict(64 * 2**20, gpus=1, ray=False), "ok", ["64 MiB", "nothing here needs it"]),
        (shared_memory_verdict(None, gpus=2, ray=False), "wrong", ["missing", "NCCL"]),
        (shared_memory_verdict(None, gpus=0, ray=True), "warning", ["missing", "Ray"]),
        (shared_memory_verdict(None, gpus=0, ray=False), "ok", ["no /dev/shm"]),
        (memory_verdict(BUSY, ranks=1), "ok", ["40.0 GiB of 64.0 GiB"]),
        (memory_verdict(BUSY, ranks=16), "warning", ["16 ranks"]),
        (memory_verdict(Memory(64 * GIB, 40 * GIB, 2 * GIB, 3 * GIB // 2), ranks=1), "wrong", ["512 MiB", "2.0 GiB"]),
        (memory_verdict(Memory(64 * GIB, 2 * GIB, 32 * GIB, 0), ranks=1), "warning", ["2.0 GiB are free of 32.0"]),
        (sockets_verdict("/tmp", "/tmp"), "ok", ["/tmp"]),
        (sockets_verdict("/scratch" * 9, "/tmp"), "warning", ["72 bytes", "/tmp/ray", "RAY_TMPDIR"]),
        (sockets_verdict("/scratch" * 9, None), "wrong", ["72 bytes", "RAY_TMPDIR"]),
        (sockets_verdict("/gone", "/tmp"), "warning", ["/gone is not usable"]),
        (room_verdict("/runs", 100 * GIB, -1, "free it"), "ok", ["100.0 GiB"]),
        (room_verdict("/runs", 5 * GIB, 10**6, "free it"), "warning", ["5.0 GiB", "free it"]),
        (room_verdict("/runs", GIB // 2, 10**6, "free it"), "wrong", ["0.5 GiB", "free it"]),
        (room_verdict("/runs", 100 * GIB, 3, "free it"), "wrong", ["3 more files"]),
        (ports_verdict(9480, [], 64), "ok", ["9480 is free"]),
        (ports_verdict(0, [], 1), "ok", ["any free port"]),
        (ports_verdict(9480, [TAKEN, TAKEN], 64), "warning", ["9480 is taken", "at 9482", "ss -ltnp"]),
        (ports_verdict(9480, [TAKEN] * 64, 64), "wrong", ["9480 to 9543", "all taken"]),
        (ports_verdict(80, [DENIED], 64), "wrong", ["Permission denied", "1024"]),
        (ports_verdict(9480, [TAKEN, NO_ADDRESS], 64), "wrong", ["ip link set lo up"]),
        (clock_verdict(time.time(), time.time() - 9), "ok", ["UTC"]),
        (clock_verdict(0.0, time.time()), "wrong", ["1970-01-01", "NTP"]),
        (skew_verdict(-2.0, "s3://b"), "ok", ["s3://b"]),
        (skew_verdict(-60.0, "s3://b"), "warning", ["60 s behind", "NTP"]),
        (skew_verdict(4000.0, "s3://b"), "wrong", ["4,000 s ahead", "refused", "NTP"]),
        (video_verdict(H264Trial("18", "62.1.1", 8, 8, 1.0)), "ok", ["av 18"]),
        (video_verdict(H264Trial("18", "62.1.1", 8, 3, 1.0)), "wrong", ["3 of 8 frames", "--only-binary"]),
        (video_verdict(H264Trial("18", "62.1.1", 8, 8, 90.0)), "wrong", ["90 grey levels"]),
        (store_verdict(StoreTrial(round_trip=0.02), "s3://b"), "ok", ["20 ms", "conditional put"]),
        (store_verdict(StoreTrial(winners=4), "s3://b"), "wrong", ["4 of 4", "If-None-Match"]),
        (store_verdict(StoreTrial(winners=0), "s3://b"), "wrong", ["0 of 4"]),
        (store_verdict(StoreTrial("it is not listed"), "s3://b"), "wrong", ["it is not listed", "ListBucket"]),
        (gpus_verdict(Cuda("", "", "", ()), []), "skipped", ["no GPU"]),
        (gpus_verdict(Cuda("", "13.0", "", ()), ["/dev/nvidia0"]), "warning", ["1 GPUs", "CPU alone", "pytorch.org"]),
        (gpus_verdict(Cuda("13.0", "", "no driver", ()), []), "skipped", ["13.0"]),
        (gpus_verdict(Cuda("13.0", "13.1", "", (H200, H200)), ["a", "b"]), "ok", ["2 × NVIDIA H200, 139 GiB"]),
        (gpus_verdict(Cuda("13.0", "12.4", "too old", ()), ["a"]), "wrong", ["too old", "12.4 or older", "driver"]),
        (gpus_verdict(Cuda("13.0", "", "no driver", ()), ["a"]), "wrong", ["--gpus all"]),
        (gpus_verdict(Cuda("13.0", "13.0", "", ()), ["a"]), "wrong", ["sees none", "CUDA_VISIBLE_DEVICES"]),
        (gpus_verdict(Cuda("13.0", "13.0", "", (H200, NO_KERNEL)), ["a"]), "wrong", ["GPU 1 (Tesla K80)", "no kernel"]),
        (deepspeed_verdict(DeepSpeedTools("0.19.8", ())), "ok", ["0.19.8"]),
        (deepspeed_verdict(DeepSpeedTools("0.19.8", ("g++", "Python.h"))), "warning", ["install g++ python3-dev"]),
        (all_reduce_verdict(AllReduceTrial("gloo", "lo", 2, "", 0.01)), "ok", ["2 ranks by gloo over lo", "10.0 ms"]),
        (all_reduce_verdict(AllReduceTrial("gloo", "eth0", 2, "rank 0: no", 0)), "wrong", ["rank 0: no", "GLOO_"]),
        (all_reduce_verdict(AllReduceTrial("nccl", "eth0", 8, "it died", 0)), "wrong", ["NCCL_DEBUG", "topo -m"]),
        (nodes_verdict("h:1", OWN, [GOOD_NODE]), "ok", ["1 nodes answer"]),
        (nodes_verdict("h:1", OWN, [GOOD_NODE, OLD_NODE]), "wrong", ["10.0.0.2 has torch 2.12.0", "reelscale is miss"]),
        (nodes_verdict("h:1", OWN, [GOOD_NODE, NodeVersions("10.0.0.3", None)]), "warning", ["10.0.0.3 did not"]),
        (nodes_verdict("h:1", OWN, [OLD_NODE, NodeVersions("10.0.0.3", None)]), "wrong", ["10.0.0.3 did not"]),
        (failure_verdict("h:1", "RuntimeError: Version mismatch: Ray 2.9"), "wrong", ["another Ray", "constraints"]),
        (failure_verdict("h:1", "it hung: no answer within 9 s"), "wrong", ["it hung", "firewall"]),
    ],
)  # fmt: skip
def test_verdicts(verdict: Verdict, state: str, parts: list[str]) -> None:
    assert verdict.state == state, verdict
    assert [part for part in parts if part not in f"{verdict.what} {verdict.remedy}"] == []
    assert bool(verdict.remedy) == (state in ("warning", "wrong"))


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("head:6379", "head"),
        ("ray://10.0.0.1:10001", "10.0.0.1"),
        ("[fe80::1]:6379", "fe80::1"),
        ("auto", ""),
        ("", ""),
    ],
)
def test_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_tightest_control_group_of_version_2_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/pod/box\n")
    write(tmp_path / "fs" / "pod", memory__max=1000, memory__current=700, memory__stat="anon 1\ninactive_file 200")
    write(tmp_path / "fs" / "pod" / "box", memory__max="max", memory__current=10)
    assert cgroup_memory(tmp_path / "cgroup", tmp_path / "fs") == (1000, 500)


def test_a_control_group_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu:/\n4:memory,other:/job\n0::/\n")
    folder = tmp_path / "fs" / "memory"
    write(folder, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=9)
    assert cgroup_memory(tmp_path / "cgroup", tmp_path / "fs") is None
    write(folder / "job", memory__limit_in_bytes=500, memory__usage_in_bytes=100, memory__stat="total_inactive_file 7")
    assert cgroup_memory(tmp_path / "cgroup", tmp_path / "fs") == (500, 93)


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path / "none", tmp_path) is None
