"""Runs `reelscale` commands as users do, and ends no process but those it started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LONGEST = 400.0  # seconds that anything here may take before it counts as hung, on a machine that does much else
MARK = "REELSCALE_TEST_COMMAND"  # a variable of every process that comes of a command, which all end with it
_CLI = "cluster.cli"
# What commands say while they load and look, which depends on how busy the machine is; an error begins otherwise.
WORDS = re.compile(
    r"^(?:loading PyTorch|loading the encoder|opening the|listing the|writing the store's|drawing the|reading the"
    r"|building the|checking the|starting Ray|connecting to the Ray cluster)[^\n]* \.\.\.\n",
    re.MULTILINE,
)


class Command:
    """A running `reelscale` command: its output so far, and every process that comes of it."""

    def __init__(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str] | None = None, module: str = _CLI
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._out, self._err = folder / f"{self.mark}.out", folder / f"{self.mark}.err"
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
        variables |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: self.mark, **(environment or {})}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=folder, env=variables, start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """Standard error so far, without what the command says while it loads, which a busy machine has more of."""
        return WORDS.sub("", self._err.read_text(errors="replace"))

    @property
    def said(self) -> str:
        """Both, for messages of failing tests."""
        return f"--- exit {self.process.poll()}\n--- out\n{self.out}\n--- err\n{self.err}"

    def exit_code(self) -> int:
        """Wait for the end."""
        return self.process.wait(timeout=LONGEST)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds, while the command is running; returns what it gave."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        raise AssertionError(f"waited in vain\n{self.said}")

    def descendants(self) -> dict[int, list[str]]:
        """Pid → command line of the living processes that the command started, whoever their parent is now."""
        living = {}
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            if pid != self.process.pid and _environment(pid).get(MARK) == self.mark and _alive(pid):
                living[pid] = _words(pid, "cmdline")
        return living

    def ranks(self) -> dict[int, int]:
        """Rank → pid of the living rank processes of launcher=none."""
        pids = self.descendants()
        return {int(_environment(pid)["RANK"]): pid for pid in pids if "RANK" in _environment(pid)}

    def ctrl_c(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the command's own process, and of no other."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def clean_up(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.descendants():
            _kill(pid)


@contextmanager
def ray_elsewhere(folder: Path, token: str | None = None) -> Iterator[dict[str, str]]:
    """A Ray cluster of 4 CPUs whose workers live in `folder`; yields the environment that names it.

    It takes commands with this token alone; without one, all.
    """
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    variables |= {"PYTHONPATH": str(ROOT), **access}
    process = subprocess.Popen(
        [sys.executable, "-c", _RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        env=variables, start_new_session=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        yield {"RAY_ADDRESS": process.stdout.readline().strip(), **access}
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_RAY = """
import sys, ray
context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
print(context.address_info["address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def running(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None, module: str = _CLI
) -> Iterator[Command]:
    """`reelscale ARGUMENTS`, or another Python module, in the background, in `folder`, while the `with` lasts."""
    command = Command([str(argument) for argument in arguments], folder, environment, module)
    try:
        yield command
    finally:
        command.clean_up()


def reelscale(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`reelscale ARGUMENTS` to its end."""
    with running(*arguments, folder=folder, environment=environment) as command:
        code = command.exit_code()
        return subprocess.CompletedProcess(arguments, code, command.out, command.err)


def succeeded(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The result of a command that must end well."""
    assert result.returncode == 0, f"{result.args}\n--- out\n{result.stdout}\n--- err\n{result.stderr}"
    return result


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> str:
    """The message of a command that must be refused: exit code 2, one message holding all `parts`."""
    text = f"{result.args}\n--- out\n{result.stdout}\n--- err\n{result.stderr}"
    assert result.returncode == 2, text
    assert "Traceback" not in result.stdout + result.stderr, text
    assert result.stderr.count("reelscale: ") == 1, text
    assert result.stderr.count("  remedy: ") == 1 and result.stderr.count("  where: ") == 1, text
    assert [part for part in parts if part not in result.stderr] == [], text
    return result.stderr


def shards(store: Path) -> list[str]:
    """Names of a store's finished shards."""
    return sorted(path.name for split in ("train", "val") for path in store.glob(f"{split}/*.parquet"))


def checkpoints(run: Path) -> list[int]:
    """Steps of a run's committed checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def train_steps(run: Path) -> list[int]:
    """Steps of the run's log, in the order they were written."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "train"]


def gone(pids: list[int]) -> bool:
    """Whether the processes end within a generous while."""
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _words(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _environment(pid: int) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in _words(pid, "environ"))}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def evaluation_summary(text: str) -> dict[str, Any]:
    """What `evaluate --json` printed, without the entries that name the run's folder."""
    return {name: value for name, value in json.loads(text).items() if name not in ("weights", "folder")}
