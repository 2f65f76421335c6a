"""Training by torchrun on several hosts: an agent and a rank on each, with a folder of the host's own."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.nodes.hosts import Host, HostProcess

LONGEST = 240.0  # seconds that anything here may take before it counts as hung
_STEP = re.compile(r" step (\d+)/\d+ ")


class Agent:
    """torchrun on one host, and what it and its rank have said so far."""

    def __init__(self, host: Host, process: HostProcess, output: Path) -> None:
        self.host, self.process, self._output = host, process, output

    @property
    def said(self) -> str:
        """Its output."""
        return self._output.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The agent's own pid, as the test sees it."""
        pid = self.process.inner
        assert pid is not None, self.said
        return pid

    def rank(self) -> int | None:
        """The pid of its rank, as the test sees it; None while there is none."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        living = self.host.processes()
        return next((int(pid) for pid in children if "cluster.cli" in living.get(int(pid), "")), None)


class TorchrunJob:
    """A training command that torchrun runs on several hosts, in a folder NAME of each; its agents as they started."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        self.name, self._command, self._environment = name, command, environment
        self.agents: list[Agent] = []

    @property
    def said(self) -> str:
        """What all agents have said, for messages of failing tests."""
        return "\n".join(f"=== {each.host.name}: exit {each.process.poll()}\n{each.said}" for each in self.agents)

    def start(self, host: Host) -> Agent:
        """Start the command on a host."""
        folder = host.disk / self.name
        folder.mkdir(exist_ok=True)
        output = folder / f"{len(self.agents)}.out"
        with output.open("wb") as file:
            words = [sys.executable, "-m", "torch.distributed.run", *self._command]
            process = host.popen(words, self._environment, file, folder)
        self.agents.append(Agent(host, process, output))
        return self.agents[-1]

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds, and return what it gave."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited in vain\n{self.said}")

    def step(self) -> int:
        """The step that any agent's rank has logged last."""
        return max((int(steps[-1]) for each in self.agents if (steps := _STEP.findall(each.said))), default=0)

    def exit_codes(self) -> list[int]:
        """Wait for all agents' ends."""
        self.until(lambda: all(each.process.poll() is not None for each in self.agents))
        return [each.process.returncode for each in self.agents]

    def run_on(self, host: Host) -> Path:
        """The run's folder on a host."""
        return host.disk / self.name / "run"
