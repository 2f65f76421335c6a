"""The batch script for Slurm by itself: a shell reads it, and every word in it comes out as it went in."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.launch.slurm import SlurmSettings, batch_script, time_limit_seconds
from sharding.base.errors import UserError
from sharding.base.settings import validate

LEAST: dict[str, Any] = {"nodes": 2, "gpus_per_node": 8}
ALL: dict[str, Any] = LEAST | {
    "name": "sports1m",
    "cpus_per_rank": 12,
    "time": "1-12:00:00",
    "partition": "gpu",
    "account": "lab",
    "options": ["--exclusive", "--comment=it's ours"],
    "setup": ["module load cuda", 'export NAME="a  b"'],
    "save_seconds": 600,
    "retries": 2,
    "requeues": 5,
    "output": "logs/%j.out",
}
COMMAND = [
    "/my env/bin/python",
    "-m",
    "cluster.cli",
    "pretrain",
    "it's.yaml",
    "loss={kind: softmax}",
    "a=$HOME `x`",
]  # no shell expands it: shellcheck would ask whether one should (SC2016)


def script(**values: Any) -> str:
    return batch_script(validate(SlurmSettings, values, "the options"), COMMAND, "/shared/my folder")


def directives(text: str) -> list[str]:
    """sbatch's options in a script, as it reads them: quotes taken away."""
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    return [word for line in lines for word in shlex.split(line.removeprefix("#SBATCH "))]


@pytest.mark.parametrize("values", [LEAST, ALL, LEAST | {"gpus_per_node": 0}], ids=["least", "all", "no GPU"])
def test_a_shell_reads_the_script(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(script(**values))
    for command in (
        ["bash", "-n"],
        [str(Path(sys.executable).with_name("shellcheck")), "--severity=style", "--exclude=SC2016"],
    ):
        checked = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_asked_of_slurm() -> None:
    assert directives(script(**ALL)) == [
        "--job-name=sports1m", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=12",
        "--time=1-12:00:00", "--partition=gpu", "--account=lab", "--chdir=/shared/my folder", "--output=logs/%j.out",
        "--open-mode=append", "--requeue", "--signal=USR1@600", "--exclusive", "--comment=it's ours",
    ]  # fmt: skip
    without = directives(script(**LEAST | {"gpus_per_node": 0, "ranks_per_node": 3}))
    assert "--ntasks-per-node=3" in without and not [word for word in without if "gpus" in word or "time" in word]


def test_the_ranks_command_is_a_line_that_the_shell_reads_back() -> None:
    text = script(**ALL)
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("srun")]
    assert shlex.split(line) == ["srun", "--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=12", *COMMAND]
    assert 'module load cuda\nexport NAME="a  b"\n' in text


def test_lines_of_setup_may_read_variables_that_are_not_set(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\necho trains\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    text = script(**LEAST | {"setup": ['echo "prompt: ${PS1_THAT_NOBODY_SET}"']})
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "1"}
    ran = subprocess.run(["bash"], input=text, env=variables, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "prompt: \ntrains\n"), ran.stderr


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("5", 300), ("5:30", 330), ("2:00:01", 7201), ("1-12", 129600), ("1-0:30", 88200), ("2-0:0:9", 172809)],
)
def test_a_time_limit_as_slurm_reads_it(time: str, seconds: int) -> None:
    assert time_limit_seconds(time) == seconds


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"time": "a day"}, "time: found 'a day'"),
        ({"partition": "gpu\n#SBATCH --wrap=x"}, "partition: found"),
        ({"name": "two words"}, "name: found"),
        ({"options": ["exclusive"]}, "options.0: found 'exclusive'"),
        ({"options": ["--a\nrm"]}, "options.0: found"),
        ({"setup": ["a\x1b[2J"]}, "setup.0: found"),
        ({"time": "5", "save_seconds": 300}, "time=5 leaves none to train"),
        ({"nodes": 0}, "nodes: found 0"),
        ({"save_seconds": 70000}, "save_seconds: found 70000"),
    ],
)
def test_what_no_script_can_hold(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        script(**LEAST | values)
    assert words in refused.value.what
