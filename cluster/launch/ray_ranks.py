"""Ranks placed by Ray Train: started, restarted when a worker dies, their log shown here."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

from cluster.launch.rank_main import RankTask, run_rank
from cluster.launch.ray_cluster import ray_cluster
from cluster.launch.signals import NOT_BEGUN
from pretrain.resilience.stop_signal import BEGUN_FILE, STOP_FILE
from sharding.base.environment import FOLLOWED
from sharding.base.errors import NotRetryable, UserError
from sharding.base.exit_codes import STOPPED
from sharding.base.parent_death import stop_signals
from sharding.base.printable import visible_lines

_LOG = "train.log"
_NOT_BEGUN_SECONDS = 3.0  # that a run which is asked to stop may take to begin


class _NotBegun(Exception):
    """The run was asked to stop, and there is nothing to save yet."""


def run_ranks(task: RankTask, ranks: int, retries: int, wait_seconds: float) -> int:
    """Run a task as `ranks` Ray Train workers; returns rank 0's exit code.

    `wait_seconds`: after which a collective gives up. Signals ask the run to stop through its folder; one that has not
    begun within seconds is left then.
    Raises a worker's UserError or NotRetryable at once, RuntimeError with its error when the retries are used up.
    """
    folder = Path(str(task.resolved.settings.run))
    folder.mkdir(parents=True, exist_ok=True)
    for name in (STOP_FILE, BEGUN_FILE):
        (folder / name).unlink(missing_ok=True)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        (folder / STOP_FILE).touch()

    before = {number: signal.signal(number, ask_to_stop) for number in stop_signals()}
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(folder / _LOG, done), daemon=True)
    follower.start()
    try:
        with ray_cluster() as ray:
            for attempt in range(retries + 1):
                (folder / BEGUN_FILE).unlink(missing_ok=True)
                try:
                    return _fit(ray, task, folder, ranks, wait_seconds)
                except RuntimeError as error:
                    if _asked_too_soon(folder):
                        raise _NotBegun from error
                    if attempt == retries or (folder / STOP_FILE).exists():
                        raise
        raise AssertionError
    except _NotBegun:
        print(NOT_BEGUN, file=sys.stderr)
        return STOPPED
    finally:
        done.set()
        follower.join(timeout=5)
        for number, handler in before.items():
            signal.signal(number, handler)
        for name in (STOP_FILE, BEGUN_FILE):
            (folder / name).unlink(missing_ok=True)


def cpus_a_rank(nodes: Sequence[float], ranks: int) -> float:
    """The most CPUs that each rank can have at once on these nodes: a whole number, or 1/k where CPUs are few."""

    def room(cpus: float) -> int:
        return sum(int(node / cpus + 1e-6) for node in nodes)

    whole = [cpus for cpus in range(1, int(max(nodes, default=0)) + 1) if room(cpus) >= ranks]
    if whole:
        return whole[-1]
    return next((1 / share for share in range(2, ranks + 1) if room(1 / share) >= ranks), 1 / ranks)


def not_again(failures: Iterable[BaseException]) -> UserError | NotRetryable | None:
    """The first of the ranks' errors that another try would only meet again; None where one may go better."""
    return next((failure for failure in failures if isinstance(failure, UserError | NotRetryable)), None)


def _fit(ray: Any, task: RankTask, folder: Path, ranks: int, wait_seconds: float) -> int:
    """One try. Ray's own retries would repeat a user's mistake, too."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    def worker(config: dict[str, Any]) -> int:
        os.environ[FOLLOWED] = "1"
        return run_rank(RankTask.model_validate(config))

    gpus = int(ray.cluster_resources().get("GPU", 0))
    trainer = TorchTrainer(
        cast(Any, worker),
        train_loop_config=task.model_dump(mode="json"),
        torch_config=TorchConfig(timeout_s=int(wait_seconds)),
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=gpus >= ranks,
            resources_per_worker=_resources(ray, ranks, gpus >= ranks),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:
            outcome["error"] = error

    # In a thread, because `fit` takes over SIGINT when it runs in the main one.
    thread = threading.Thread(target=fit, daemon=True)
    asked = 0.0
    thread.start()
    while thread.is_alive():
        if _asked_too_soon(folder):
            asked = asked or time.monotonic()
            if time.monotonic() - asked > _NOT_BEGUN_SECONDS:
                raise _NotBegun
        thread.join(timeout=0.2)
    if "error" in outcome:
        error = outcome["error"]
        if isinstance(error, WorkerGroupError):
            final = not_again(error.worker_failures.values())
            if final:
                raise final from None
        raise RuntimeError(str(error)) from error
    # Ray keeps metrics only of reports with a checkpoint, so the outcome travels as rank 0's return value.
    return int(outcome["result"].return_value)


def _asked_too_soon(folder: Path) -> bool:
    """Whether the run is asked to stop, and has not begun."""
    return (folder / STOP_FILE).exists() and not (folder / BEGUN_FILE).exists()


def _resources(ray: Any, ranks: int, on_gpus: bool) -> dict[str, float]:
    """What a rank asks for. Ray gives its worker as many threads as CPUs: all that an idle cluster has."""
    nodes = [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = cpus_a_rank(nodes, ranks)
    if on_gpus:
        return {"CPU": min(1.0, cpus), "GPU": 1}
    idle = ray.available_resources().get("CPU", 0) >= sum(nodes)
    return {"CPU": cpus if idle else min(1.0, cpus)}


def _follow(path: Path, done: threading.Event) -> None:
    """Print what is appended to `path` from now on, until `done`."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        last = done.wait(0.3)
        if path.exists():
            with path.open() as file:
                file.seek(position)
                text = file.read()
                position = file.tell()
            if text:
                print(visible_lines(text), end="", flush=True)
        if last:
            return
