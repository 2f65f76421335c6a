"""Completion in a shell: the script that the command prints, and what it completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PROGRAM = "import sys; sys.argv[0] = 'reelscale'; from cluster.cli import main; main()"


def answer(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command under its own name, which those of the variables begin with that a shell asks by."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    done = answer(_REELSCALE_COMPLETE=f"source_{shell}")
    assert done.returncode == 0 and "reelscale" in done.stdout and f"complete_{shell}" in done.stdout, done
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


def test_commands_and_options_are_completed() -> None:
    asked = {"_REELSCALE_COMPLETE": "complete_bash", "COMP_WORDS": "reelscale sha", "COMP_CWORD": "1"}
    assert answer(**asked).stdout.split() == ["shard", "shards"]
    asked |= {"COMP_WORDS": "reelscale doctor --st", "COMP_CWORD": "2"}
    assert answer(**asked).stdout.split() == ["--store"]


def test_the_option_prints_the_script_of_the_shell_that_calls(tmp_path: Path) -> None:
    script = tmp_path / "reelscale"
    script.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    script.chmod(0o755)
    command = ["bash", "-c", f"{script} --show-completion; exit $?"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "complete -o default -F _reelscale_completion reelscale" in done.stdout, done
