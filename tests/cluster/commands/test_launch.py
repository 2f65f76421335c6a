"""`reelscale launch`: what is printed, what is refused before anything is sent, and what of the programs that send."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.launch.signals import FORCED
from tests.cluster.conftest import Say
from tests.support.commands import refused, running, succeeded

SLURM = ("--nodes", "2", "--gpus-per-node", "1")
PROTECTED = "monitor.access.secret_variable=TOKEN"
KUBERAY = (PROTECTED, "--nodes", "1", "--gpus-per-node", "8", "--image", "registry/reelscale:1")


def test_slurm_prints_the_script_and_starts_nothing(say: Say, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    made = succeeded(say("launch", "slurm", recipe, "data.store=/a store", *SLURM, "--setup", "one", "--setup", "two"))
    assert made.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=reelscale\n") and "\none\ntwo\n" in made.stdout
    assert made.stderr == ""
    (line,) = [line.strip() for line in made.stdout.splitlines() if line.strip().startswith("srun")]
    assert shlex.split(line)[-4:] == ["pretrain", str(recipe), "launcher=none", "data.store=/a store"]
    assert f"#SBATCH --chdir={Path.cwd()}\n" in made.stdout
    words = refused(say("launch", "slurm", recipe, "data.store=store", *SLURM, "--submit"), "--submit")
    assert "there is no program sbatch" in words


def test_sbatch_that_fails_is_quoted(say: Say, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'invalid partition specified' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    failed = say("launch", "slurm", recipe, "data.store=store", *SLURM, "--submit")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "sbatch failed with exit code 1: invalid partition specified" in failed.stderr


def test_idle_ranks_are_told(say: Say, recipe: Path) -> None:
    made = succeeded(say("launch", "slurm", recipe, "data.store=s", "--nodes", "3", "--gpus-per-node", "1"))
    assert made.stderr == "reelscale: 2 lanes do not spread over 3 ranks: 2 train, and 1 stay idle\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("slurm", "data.store=s", "lanez=3", *SLURM), "lanez: there is no such setting"),
        (("slurm", "data.store=s", *SLURM, "--time", "a day"), "time: found 'a day'"),
        (("slurm", "data.store=s", "--nodes", "2"), "gpus_per_node: is required"),
        (("slurm", "data.store=s", "--gpus-per-node", "0", "--nodes", "0"), "nodes: found 0"),
        (("hostfile", "data.store=s"), "no hosts are named"),
        (("hostfile", "data.store=s", "--hostfile", "none"), "no such hostfile"),
        (("hostfile", "data.store=s", "--hosts", "a,a"), "a is there twice"),
        (("kuberay", "data.store=/data/s", "--claim", "data", *KUBERAY[1:]), "monitor.insecure=true"),
        (("kuberay", "data.store=s3://b/s", *KUBERAY), "no other node can see the run's folder"),
        (("kuberay", "data.store=store", "--claim", "data", *KUBERAY), "no pod can see the store store"),
        (("kuberay", "data.store=s3://b/s", "--claim", "d", "run=/scratch/r", *KUBERAY), "below /data"),
        (("kuberay", "data.store=s3://b/s", "--claim", "d", "run=/data/../r", *KUBERAY), "nor checkpoints elsewhere"),
        (("kuberay", "data.store=s3://b/s", "checkpoint.store=/tmp/c", *KUBERAY), "nor the checkpoints in /tmp/c"),
        (("kuberay", "data.store=s3://b/s", "checkpoint.store=file:///data/c", *KUBERAY), "--claim NAME"),
        (("kuberay", "data.store=file:///s", "--claim", "data", *KUBERAY), "no pod can see the store file:///s"),
        (("slurm", "data.store=s", "--command", "finetune", *SLURM), "set init.run=RUN"),
        (("hostfile", "data.store=s", "--command", "finetune", "--hosts", "a"), "set init.run=RUN"),
        (("kuberay", "data.store=s3://b/s", "--command", "finetune", "--claim", "d", *KUBERAY), "set init.run=RUN"),
        (("kuberay", "data.store=s3://b/s", "checkpoint.store=s3://b/r", "--node-labels", "x", *KUBERAY), "KEY=VALUE"),
        (("kuberay", "data.store=s3://b/s", "--claim", "data", "--name", "A", *KUBERAY), "name: found 'A'"),
    ],
)
def test_mistakes(say: Say, recipe: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(say("launch", arguments[0], recipe, *arguments[1:]))


@pytest.mark.parametrize("command", ["slurm", "hostfile", "kuberay", "plan"])
@pytest.mark.parametrize(
    "setting",
    ["data.store=URL", "checkpoint.store=URL", "init.run=URL", "data.mix=[{store: URL}]", "lanes=URL", "in the recipe"],
)
def test_a_password_is_neither_written_down_nor_printed(say: Say, recipe: Path, command: str, setting: str) -> None:
    options = {"slurm": SLURM, "hostfile": ("--hosts", "a"), "kuberay": ("--claim", "d", *KUBERAY), "plan": ()}
    words = ("plan",) if command == "plan" else ("launch", command)
    url = "s3://me:PA55WORD@bucket/x"
    Path("own.yaml").write_text(f"base: {recipe}\n" + (f"checkpoint: {{store: '{url}'}}\n" if " " in setting else ""))
    override = "checkpoint.store=s3://b/r" if " " in setting else setting.replace("URL", url)
    said = say(*words, "own.yaml", "data.store=s3://b/s", override, *options[command])
    assert "PA55WORD" not in refused(said, "the address holds a password") + said.stdout


def test_kuberay_prints_a_job_that_trains_the_recipe(say: Say, recipe: Path) -> None:
    options = ("--claim", "data", "--name", "tiny", "--node-labels", "gpu=H200", "--secrets", "a", "--secrets", "b")
    made = succeeded(say("launch", "kuberay", recipe, "data.store=/data/store", *options, *KUBERAY))
    recipe_map, job = yaml.safe_load_all(made.stdout)
    assert recipe_map["data"] == {"recipe.yaml": recipe.read_text()}
    assert shlex.split(job["spec"]["entrypoint"]) == [
        "reelscale", "pretrain", "/etc/reelscale/recipe.yaml", "data.store=/data/store", PROTECTED,
        "run=/data/runs/tiny", "launcher=ray", "ranks=2", "monitor.address=0.0.0.0", "monitor.port=9480",
    ]  # fmt: skip
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert workers["nodeSelector"] == {"gpu": "H200"} and len(workers["containers"][0]["envFrom"]) == 2
    assert "2 lanes do not spread over 8 ranks" in made.stderr
    Path("based.yaml").write_text(f"base: {recipe}\nlog_steps: 7\n")
    made = succeeded(say("launch", "kuberay", "based.yaml", "data.store=/data/store", *options, *KUBERAY))
    (sent, _) = yaml.safe_load_all(made.stdout)
    assert yaml.safe_load(sent["data"]["recipe.yaml"]) == {**yaml.safe_load(recipe.read_text()), "log_steps": 7}
    on_the_claim = ("data.store=file:///data/store", "checkpoint.store=/data/kept", "run=/scratch/mine")
    made = succeeded(say("launch", "kuberay", recipe, *on_the_claim, *options, *KUBERAY))
    (_, job) = yaml.safe_load_all(made.stdout)
    hook = pre_stop(job)
    assert "kill -0" in hook and "/scratch/mine/stop" in hook, "no pod but one sees the run's folder"
    run = ("data.store=s3://b/store", "checkpoint.store=s3://b/runs", "run=mine")
    made = succeeded(say("launch", "kuberay", recipe, *run, *KUBERAY))
    assert "run=/tmp/reelscale/mine" in made.stdout, "a folder of the pod's own"


def pre_stop(job: dict[str, Any]) -> str:
    """The shell command that a worker's pod runs when it is to go."""
    pod = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    command: list[str] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    return command[-1]


def test_hostfile_prints_the_hosts_and_a_command_for_each(say: Say, recipe: Path) -> None:
    common = ("launch", "hostfile", recipe, "data.store=/data/store", "--python", "/env/bin/python")
    made = succeeded(say(*common, "--hosts", "node1, node2", "--gpus-per-node", "4")).stdout
    assert "# the hostfile hostfile:\nnode1 slots=4\nnode2 slots=4\n" in made
    assert made.count("torch.distributed.run") == made.count("--rdzv-endpoint node1:29500") == 2
    Path("hosts").write_text("node3 slots=2\n")
    made = succeeded(say(*common, "--hostfile", "hosts", "--launcher", "deepspeed")).stdout
    assert "/env/bin/python -m deepspeed.launcher.runner --hostfile hosts --master_addr node3" in made
    assert not Path("hostfile").exists(), "it is printed, and not written"


@pytest.mark.slow
@pytest.mark.cluster
def test_hosts_that_do_not_end_are_not_waited_for_after_a_second_signal(recipe: Path, tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\ntrap '' INT TERM HUP\necho at work\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    hosts = ("--hosts", "one,two", "--gpus-per-node", "1", "--ssh", str(program), "--submit")
    with running("launch", "hostfile", recipe, "data.store=store", "run=run", *hosts, folder=tmp_path) as command:
        command.until(lambda: command.out.count("at work") == 2)
        for seconds in (3, 0):  # two signals at once are one request
            command.process.terminate()
            time.sleep(seconds)
        assert command.exit_code() == 75, command.said
    assert FORCED in command.err
