"""An S3 server that keeps checkpoints, for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoints.checkpoint import CheckpointSettings
from tests.support.s3 import S3Server, running_s3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture()
def url(server: S3Server, tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture()
def settings(url: str) -> CheckpointSettings:
    return CheckpointSettings(keep=2, store=url)
