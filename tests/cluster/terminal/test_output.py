"""What a process writes before it ends: all of it, on a terminal of any encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from cluster.terminal import tables
from tests.support.commands import ROOT, WORDS

PROGRAM = """
import atexit, sys
atexit.register(print, "taken down")
sys.argv = ["reelscale", *sys.argv[1:]]
from cluster.cli import main
main()
"""


def said(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if name != "RANK"} | environment
    command = [sys.executable, "-c", PROGRAM, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=mine, capture_output=True, text=True, timeout=100, check=False)
    result.stderr = WORDS.sub("", result.stderr)
    return result


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["nonsense"], 2), (["pretrain", "nowhere.yaml"], 2)])
def test_a_rank_says_all_and_is_not_taken_down(arguments: list[str], code: int) -> None:
    alone, rank = said(*arguments), said(*arguments, RANK="0")
    assert alone.returncode == rank.returncode == code
    assert alone.stdout == rank.stdout + "taken down\n" and alone.stderr == rank.stderr
    assert rank.stdout + rank.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_unicode_shows_escapes(encoding: str) -> None:
    result = said("settings", "retry", PYTHONIOENCODING=encoding)
    assert result.returncode == 0 and result.stderr == ""
    assert r"workers: integer \u2265 0" in result.stdout


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "█"), ("latin-1", "#"), ("ascii", "#")])
def test_bars_are_as_wide_in_every_encoding(encoding: str, bar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert tables._bars("videos", {"run": 2}).splitlines()[1].split()[-1] == 40 * bar
