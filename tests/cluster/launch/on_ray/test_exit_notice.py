"""A command that is ended without a word of its own is followed by one line; one that ends by itself is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.launch.on_ray.exit_notice import ENDED
from tests.support.commands import ROOT

PROGRAM = """
import os, signal, sys
from cluster.launch.on_ray.exit_notice import exit_notice
with exit_notice():
    {end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "os.abort()"])
def test_a_sudden_end(end: str) -> None:
    assert said(end).splitlines() == [ENDED]


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)"])
def test_an_end_in_order(end: str) -> None:
    assert said(end) == ""


def said(end: str) -> str:
    """Standard error until nobody has it open any more."""
    return subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          timeout=60).stderr  # fmt: skip
