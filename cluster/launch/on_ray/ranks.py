"""Ranks placed by Ray Train: started, started again when one dies, on fewer or more nodes where the settings say so."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cluster.launch.launch_settings import LaunchSettings
from cluster.launch.on_ray.capacity import Capacity
from cluster.launch.on_ray.channel import RankChannel, open_channel
from cluster.launch.on_ray.cluster import kill_actors, ray_cluster
from cluster.launch.on_ray.failures import Failure, failure_of, start_failure
from cluster.launch.on_ray.placement import Placement
from cluster.launch.rank_main import RankTask, run_rank
from cluster.launch.signals import FORCED, NOT_BEGUN, StopRequests
from cluster.terminal.training_bar import TrainingBar, training_bar
from pretrain.checkpoints.checkpointer import Checkpointer
from sharding.base import environment
from sharding.base.errors import CommandFailed, UserError
from sharding.base.exit_codes import STOPPED

_NOT_BEGUN_SECONDS = 3.0  # that a run which is asked to stop may take to begin
_FORCED_SECONDS = 3.0
_LEAVE_SECONDS = 20.0  # that a try may take to end once its controller is killed
_LOOK_SECONDS = 0.3


@dataclass
class Attempt:
    """One try of a run on Ray, as the command sees it: where its ranks are, and how it ended."""

    placement: Placement
    hosts: dict[int, str] = field(default_factory=dict)
    begun: bool = False
    growing: bool = False  # asked to save and stop, so that more ranks go on
    outcome: int | Failure | None = None


def run_ranks(task: RankTask, launch: LaunchSettings) -> int:
    """Run a task as Ray Train workers; returns rank 0's exit code.

    Signals ask the run to stop; one that has not begun within seconds is left then, and any at a second signal.
    Raises a worker's UserError or NotRetryable at once, CommandFailed when tries without progress are used up or there
    is no room for the ranks.
    """
    with training_bar() as bar, StopRequests() as requests, ray_cluster() as ray:
        capacity = Capacity(ray, launch, task.resolved.settings.lanes, requests)
        with capacity.asked_for():
            return _RayRun(ray, task, launch, requests, capacity, bar).run()


class _RayRun:
    """A run on Ray: try after try, until it ends or is stopped."""

    def __init__(
        self,
        ray: Any,
        task: RankTask,
        launch: LaunchSettings,
        requests: StopRequests,
        capacity: Capacity,
        bar: TrainingBar,
    ) -> None:
        self._ray, self._task, self._launch, self._requests, self._capacity = ray, task, launch, requests, capacity
        self._bar = bar
        settings = task.resolved.settings
        self._folder, self._checkpoint = Path(str(settings.run)), settings.checkpoint
        self._failures_in_a_row = 0  # tries in a row that saved nothing new
        self._lost_at: float | None = None
        self._began = False  # whether any try began to train

    def run(self) -> int:
        """The exit code of the run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            placement = self._capacity.wait()
            if placement is None:
                return self._stopped_between()
            self._capacity.require_common_folder(placement, self._folder, self._checkpoint.store)
            self._say(self._capacity.describe(placement))
            before, others, attempt = self._newest_step(), self._capacity.groups(), Attempt(placement)
            self._watch(attempt)
            if isinstance(attempt.outcome, int) and not (attempt.growing and attempt.outcome == STOPPED):
                return attempt.outcome
            if self._requests.asked:
                return STOPPED if attempt.outcome == STOPPED else self._stopped_between(attempt)
            if attempt.begun:
                self._capacity.restart_timeout()
            if isinstance(attempt.outcome, Failure):
                self._count(self._with_cause(attempt, attempt.outcome), before)
            self._capacity.wait_until_freed(others)

    def _stopped_between(self, attempt: Attempt | None = None) -> int:
        """STOPPED, with a word on what is kept; the failure's CommandFailed where the ranks could not stop in order."""
        if self._requests.forced:
            print(FORCED, file=sys.stderr)
        elif attempt and attempt.begun and isinstance(attempt.outcome, Failure):
            raise CommandFailed(f"training failed while it was stopping: {attempt.outcome.line}")
        elif self._began:
            onward = _onward(self._newest_step())
            print(f"reelscale: stopped between two tries; the same command goes on {onward}", file=sys.stderr)
        else:
            print(NOT_BEGUN, file=sys.stderr)
        return STOPPED

    def _with_cause(self, attempt: Attempt, failure: Failure) -> Failure:
        """The failure by its cause, where that is a node which Ray calls alive: the other ranks end before it does."""
        if failure.error or not failure.ranks_ran:
            return failure
        unresponsive = {node.address for node in self._capacity.unresponsive_nodes(attempt.placement)}
        gone = sorted(rank for rank, host in attempt.hosts.items() if host in unresponsive)
        if not gone:
            return failure
        ranks = f"rank {gone[0]}" if len(gone) == 1 else f"ranks {gone[0]} to {gone[-1]}"
        where = ", ".join(sorted(unresponsive))
        return Failure(f"{ranks} of {attempt.placement.ranks} on {where} cannot be reached: its node does not answer")

    def _count(self, failure: Failure, before: int) -> None:
        """Say why a try failed and what comes next. Raises its error where nothing does."""
        if error := failure.final(self._began):
            raise error from None
        now = self._newest_step()
        self._failures_in_a_row = 0 if now > before else self._failures_in_a_row + failure.ranks_ran
        if self._failures_in_a_row > self._launch.retries:
            raise CommandFailed(
                f"training failed: {failure.line}; {self._failures_in_a_row} tries in a row saved nothing new "
                f"(retries={self._launch.retries})"
            )
        if failure.ranks_ran:
            self._lost_at = self._lost_at or time.monotonic()
        tries = (
            f", try {self._failures_in_a_row} of {self._launch.retries} without progress"
            if self._failures_in_a_row
            else ""
        )
        self._say(f"{failure.line}; going on {_onward(now)}{tries}")

    def _newest_step(self) -> int:
        """The step of the newest checkpoint that this machine or the store has; -1 without any."""
        try:
            newest = Checkpointer(self._folder, self._checkpoint).newest()
        except (UserError, OSError):
            return -1
        return newest.step if newest else -1

    def _watch(self, attempt: Attempt) -> None:
        """Run a try to its end, or until it is left at a signal; what its ranks log is printed meanwhile."""
        channel = open_channel(self._ray)
        thread = threading.Thread(target=self._fit, args=(attempt, channel), daemon=True)
        thread.start()
        asked, looked, leave_at = False, time.monotonic(), float("inf")
        while thread.is_alive() and time.monotonic() < leave_at:
            thread.join(timeout=_LOOK_SECONDS)
            self._take(channel, attempt)
            if self._requests.asked and not asked:
                asked = True
                channel.ask_to_stop.remote()
            if asked and not attempt.begun:
                leave_at = min(leave_at, time.monotonic() + _NOT_BEGUN_SECONDS)
            elif asked:
                leave_at = float("inf")
            if self._requests.forced:
                leave_at = min(leave_at, time.monotonic() + _FORCED_SECONDS)
            if self._launch.is_elastic and time.monotonic() - looked > self._launch.resize_seconds:
                looked = time.monotonic()
                self._grow(attempt, channel)
        self._take(channel, attempt)
        self._leave(thread)
        self._ray.kill(channel)

    def _leave(self, thread: threading.Thread) -> None:
        """End a try that is left: its thread must be out of Ray before the connection is closed.

        Ray's library would end the process with code 1 under it.
        """
        end = time.monotonic() + _LEAVE_SECONDS
        while thread.is_alive() and time.monotonic() < end:
            kill_actors(self._ray, "TrainController")
            thread.join(timeout=_LOOK_SECONDS)

    def _grow(self, attempt: Attempt, channel: Any) -> None:
        """Have a run save and stop, so that it goes on with more ranks, where there is room for them now."""
        if not attempt.begun or attempt.growing or attempt.placement.ranks == self._launch.world_size:
            return
        more = self._capacity.look(attempt.placement)
        if more and more.ranks > attempt.placement.ranks:
            ranks = f"{more.ranks} ranks instead of {attempt.placement.ranks}"
            self._say(f"room for {ranks}: saving, then going on with them")
            attempt.growing = True
            channel.ask_to_stop.remote()

    def _take(self, channel: Any, attempt: Attempt) -> None:
        try:
            text, begun, attempt.hosts = self._ray.get(channel.take.remote(), timeout=10)
        except self._ray.exceptions.RayError:
            return
        if text:
            self._bar.print(text)
        if begun and not attempt.begun:
            attempt.begun = self._began = True
            if self._lost_at is not None:
                self._say(f"training again, {time.monotonic() - self._lost_at:.0f} s after ranks were lost")
                self._lost_at = None

    def _say(self, line: str) -> None:
        self._bar.print(f"{time.strftime('%H:%M:%S')} {line}\n")

    def _fit(self, attempt: Attempt, channel: Any) -> None:
        """One try, in a thread of its own, because Ray takes over SIGINT where it fits in the main one."""
        from ray.train import WorkerGroupError

        try:
            result = _trainer(self._ray, self._task, self._folder, attempt.placement, channel).fit()
            # Ray keeps metrics only of reports with a checkpoint, so the outcome travels as rank 0's return value.
            attempt.outcome = int(result.return_value)
        except WorkerGroupError as error:
            attempt.outcome = failure_of(error.worker_failures, attempt.hosts, attempt.placement.ranks)
        except Exception as error:
            attempt.outcome = start_failure(error)


def _trainer(ray: Any, task: RankTask, folder: Path, placement: Placement, channel: Any) -> Any:
    """Ray Train's trainer of one try.

    Ray's own retries would repeat a user's mistake, and ask for nodes that are gone; its own resizing ends ranks
    without saving, and takes numbers of them that do not divide the lanes.
    """
    from ray.train.torch import TorchTrainer

    from cluster.launch.on_ray.backend import RankConfig

    train: Any = importlib.import_module("ray.train")  # its types are those of the trainer that is not used

    def worker(config: dict[str, Any]) -> int:
        environment.adopt_variables({environment.FOLLOWED: "1"})
        import ray as ray_of_worker

        with RankChannel(ray_of_worker, channel, Path(str(config["resolved"]["settings"]["run"]))):
            return run_rank(RankTask.model_validate(config))

    return TorchTrainer(
        cast(Any, worker),
        train_loop_config=task.model_dump(mode="json"),
        torch_config=RankConfig(),
        scaling_config=train.ScalingConfig(
            num_workers=placement.ranks,
            use_gpu=placement.gpus > 0,
            resources_per_worker={"CPU": placement.cpus, **({"GPU": placement.gpus} if placement.gpus else {})},
            label_selector=[{"ray.io/node-id": node.id} for node in placement.nodes],
        ),
        run_config=train.RunConfig(
            name="ray",
            storage_path=str(folder.absolute()),
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _onward(step: int) -> str:
    return f"from the checkpoint at step {step}" if step > 0 else "from the beginning"
