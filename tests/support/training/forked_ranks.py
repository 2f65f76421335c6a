"""A process that has imported what training needs, and forks ranks of it: they begin in a second instead of ten.

python -m tests.support.training.forked_ranks: a request a line on standard input (see `ForkServer.start`), a pid a line
on standard output, and "PID CODE" when it ended.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pretrain.engine.distributed import free_port
from tests.pretrain.conftest import CLIP

ROOT = Path(__file__).parents[3]
STEPS = 60


@dataclass
class ForkServer:
    """The test's side of a process that forks ranks: starts them, and has their exit codes by pid."""

    process: subprocess.Popen[str]
    codes: dict[int, int] = field(default_factory=dict)
    _pids: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def start(
        self, config: dict[str, Any], ranks: int, shown: Path | None = None, threads: int = 1, **faults: Any
    ) -> list[int]:
        """Train `config` (a TrainSettings' dump) on so many ranks, each a process: their pids.

        `threads`: what a rank would compute with by itself, as a launcher sets it by the machine's cores.
        `shown`: a file to which each rank appends a line a lane and step: the lane, the samples' keys.
        `poisoned`: steps' worth of samples, counted from the start of the ranks, in which the last rank's last lane has
        a pixel that is infinite. `hangs`: (rank, step) of one that then sleeps for ever. `slow`: seconds that the last
        rank takes longer for a micro-step; `save`: that a save takes longer.
        """
        pids, port = [], free_port()
        for rank in range(ranks):
            order = {"config": config, "rank": rank, "ranks": ranks, "port": port, "shown": shown and str(shown)}
            order |= {"threads": threads, "poisoned": [], "hangs": [-1, -1], "slow": 0.0, "save": 0.0}
            order |= {"lost": [-1, -1, ""]} | faults
            assert self.process.stdin
            print(json.dumps(order), file=self.process.stdin, flush=True)
            pids.append(self._pids.get(timeout=120))
        return pids

    def ended(self, pids: list[int], seconds: float = 120) -> list[int]:
        """Their exit codes (negative: the signal's number), once all have ended."""
        deadline = time.monotonic() + seconds
        while not all(pid in self.codes for pid in pids):
            assert time.monotonic() < deadline, "ranks do not end"
            time.sleep(0.01)
        return [self.codes[pid] for pid in pids]

    def read_replies(self) -> None:
        """Read pids and exit codes until the server ends."""
        assert self.process.stdout
        for line in self.process.stdout:
            pid, *code = map(int, line.split())
            if code:
                self.codes[pid] = code[0]
            else:
                self._pids.put(pid)


def config(store: str, run: Path) -> dict[str, Any]:
    """60 steps of two lanes; a checkpoint every third step, a validation every 16th."""
    return {
        "run": str(run),
        "lanes": 2,
        "lane_batch": 2,
        "log_steps": 1,
        "data": {"store": store, "clip": CLIP, "loader": {"workers": 1}},
        "model": {"depth": 10, "width": 0.125, "dropout": 0.3},
        "schedule": {"lr": 0.005, "epoch_clips": 40, "epochs": STEPS * 4 / 40, "warmup_epochs": 1, "decay": "cosine"},
        "engine": {"precision": "fp32", "zero": 1},
        "validation": {"every_steps": 16, "videos": 5},
        "checkpoint": {"every_steps": 3, "keep": 2},
    }


def shown(path: Path) -> list[list[Any]]:
    """The keys that each lane showed, in order."""
    lanes: list[list[Any]] = [[], []]
    for line in path.read_text().splitlines():
        lane, keys = json.loads(line)
        lanes[lane].append(keys)
    return lanes


@contextmanager
def fork_server(log: Path) -> Iterator[ForkServer]:
    """A fork server for the length of the `with`; what its ranks print goes to `log`."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.support.training.forked_ranks"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    server = ForkServer(process)
    listening = threading.Thread(target=server.read_replies, daemon=True)
    listening.start()
    try:
        yield server
    finally:
        process.kill()
        process.wait()


def serve(requests: IO[str]) -> None:
    """Fork a rank for each request; threads and collectives begin in the ranks only."""
    import deepspeed  # noqa: F401

    import pretrain.training.trainer  # noqa: F401

    for line in requests:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = be_rank(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        say(f"{pid}")
        threading.Thread(target=tell_end, args=(pid,), daemon=True).start()


def tell_end(pid: int) -> None:
    """Its code, when it ends."""
    _, status = os.waitpid(pid, 0)
    say(f"{pid} {os.waitstatus_to_exitcode(status)}")


def say(line: str) -> None:
    """Whole, whichever thread says it."""
    os.write(1, f"{line}\n".encode())


def be_rank(order: dict[str, Any]) -> int:
    """A rank's whole life; its exit code."""
    import torch

    from pretrain.checkpoints import checkpointer
    from pretrain.settings import TrainSettings
    from pretrain.training import trainer
    from pretrain.training.preflight import preflight
    from sharding.base.exit_codes import DONE, STOPPED
    from sharding.base.parent_death import die_with

    die_with(os.getppid())
    os.dup2(2, 1)
    torch.set_num_threads(order["threads"])
    ranks = str(order["ranks"])
    os.environ |= {"RANK": str(order["rank"]), "LOCAL_RANK": str(order["rank"]), "WORLD_SIZE": ranks}
    os.environ |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    steps, micro_steps, inputs, last = itertools.count(), trainer.micro_steps, trainer.network_input, [False]
    save = checkpointer.save_checkpoint

    def looked_at(lanes: range, batches: list[Any], together: bool) -> Any:
        step = next(steps)
        for lane, clips in zip(lanes, batches, strict=True):
            if order["shown"]:
                with Path(order["shown"]).open("a") as file:
                    file.write(json.dumps([lane, clips.keys]) + "\n")
        if [order["rank"], step] == order["hangs"]:
            time.sleep(3600)
        for numbers, clips in micro_steps(lanes, batches, together):
            last[0] = step in order["poisoned"] and order["rank"] == order["ranks"] - 1 and numbers[-1] == lanes[-1]
            yield numbers, clips

    def spoilt(*arguments: Any, **named: Any) -> Any:
        video = inputs(*arguments, **named)
        if order["rank"] == order["ranks"] - 1:
            time.sleep(order["slow"])
        if last[0]:
            video[0, 0, 0, 0, 0] = math.inf
        return video

    def saved(*arguments: Any, **named: Any) -> Any:
        time.sleep(order["save"])
        return save(*arguments, **named)

    trainer.micro_steps, trainer.network_input, checkpointer.save_checkpoint = looked_at, spoilt, saved
    rank, step, call = order["lost"]
    if rank == order["rank"]:
        lose_device(step, call)
    settings = TrainSettings.model_validate(order["config"])
    return STOPPED if trainer.train(preflight(settings, order["ranks"])) == "stopped" else DONE


def lose_device(step: int, call: str) -> None:
    """Have a call of the engine fail at a step as a GPU's does, and whatever leaves in order hang from then on."""
    import torch.distributed as dist

    from pretrain.data.loader import Loader
    from pretrain.engine.engine import Engine
    from pretrain.resilience.hang_watchdog import Watchdog

    calls, plain = itertools.count(), getattr(Engine, call)

    def failing(self: Any, *arguments: Any) -> Any:
        if next(calls) == step:
            dist.destroy_process_group = Loader.close = Watchdog.__exit__ = lambda *_: time.sleep(3600)
            raise RuntimeError("CUDA error: misaligned address\nCUDA kernel errors might be asynchronously reported")
        return plain(self, *arguments)

    setattr(Engine, call, failing)


if __name__ == "__main__":
    serve(sys.stdin)
