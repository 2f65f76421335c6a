"""What a process says of its software and its task."""

from __future__ import annotations

import json
from importlib import metadata
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from sharding.telemetry import build


def test_what_runs_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "installed_commit", lambda: "c0ffee")
    build.set_run_info("shard", recipe="first.yaml")
    build.set_run_info("evaluate", recipe="second.yaml", network="r2plus1d-34", store_version="v1", world_size=4)
    versions = {"version": metadata.version("reelscale"), "torch": metadata.version("torch")}
    assert REGISTRY.get_sample_value("reelscale_build_info", {**versions, "commit": "c0ffee"}) == 1
    (family,) = build.RUN_INFO.collect()
    assert [sample.labels for sample in family.samples] == [
        {
            "kind": "evaluate", "recipe": "second.yaml", "network": "r2plus1d-34", "store_version": "v1",
            "world_size": "4", "device": "",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("noted", "commit"),
    [
        ({"url": "https://host/reelscale.git", "vcs_info": {"vcs": "git", "commit_id": "4d2"}}, "4d2"),
        ({"url": "file:///src/reelscale", "dir_info": {"editable": True}}, ""),
        (None, ""),
    ],
)
def test_the_commit_is_what_pip_noted(noted: object, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(noted) if noted else None
    monkeypatch.setattr(build.metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    assert build.installed_commit() == commit
