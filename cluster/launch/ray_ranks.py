"""Ranks placed by Ray Train: started, restarted when a worker dies, their log shown here."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

from cluster.launch.ray_cluster import cpus, ray_cluster
from pretrain.stop import STOP_FILE

_LOG = "train.log"


def run_ranks(rank_main: Callable[[dict[str, Any]], str], config: dict[str, Any], ranks: int, retries: int) -> str:
    """Run `rank_main(config)` as `ranks` Ray Train workers; returns what rank 0's returned.

    `config["run"]` is the run's folder. SIGINT and SIGTERM ask the run to stop through it.
    Raises RuntimeError with the worker's error when the retries are used up.
    """
    folder = Path(config["run"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP_FILE).unlink(missing_ok=True)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        (folder / STOP_FILE).touch()

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(folder / _LOG, done), daemon=True)
    follower.start()
    try:
        with ray_cluster() as ray:
            return _fit(ray, rank_main, config, ranks, retries)
    finally:
        done.set()
        follower.join(timeout=5)
        for number, handler in before.items():
            signal.signal(number, handler)


def _fit(ray: Any, rank_main: Callable[[dict[str, Any]], str], config: dict[str, Any], ranks: int, retries: int) -> str:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def worker(config: dict[str, Any]) -> str:
        os.environ["REELSCALE_FOLLOWED"] = "1"
        return rank_main(config)

    gpus = int(ray.cluster_resources().get("GPU", 0))
    trainer = TorchTrainer(
        cast(Any, worker),
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=gpus >= ranks,
            resources_per_worker={"CPU": min(1.0, cpus(ray) / ranks)} | ({"GPU": 1} if gpus >= ranks else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(Path(config["run"]).absolute()),
            failure_config=FailureConfig(max_failures=retries),
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
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    if "error" in outcome:
        raise RuntimeError(str(outcome["error"])) from outcome["error"]
    if outcome["result"].error:
        raise RuntimeError(str(outcome["result"].error))
    # Ray keeps metrics only of reports with a checkpoint, so the outcome travels as rank 0's return value.
    return str(outcome["result"].return_value)


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
                print(text, end="", flush=True)
        if last:
            return
