"""Trials run by Ray Tune: side by side as there is room, the worst ended early, all gone on with after a stop."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.launch.on_ray.cluster import actor_here, ray_cluster
from cluster.launch.signals import StopRequests
from cluster.launch.tuning.trial import Trial, TrialProcess, TrialStopped
from sharding.base.errors import CommandFailed

_LOOK_SECONDS = 0.3
_STOP_SECONDS = 900.0  # that trials may take to save and end
_IDLE_SECONDS = 3600.0  # of a trial that has stopped, until the command has left


@dataclass(frozen=True)
class TuneOptions:
    """How trials are run: `ranks` of each, CPUs of a trial (None: a node's), trials at a time (None: as there is room).

    `grace_steps`, `reduction`: of ASHA, None without it. `retries`: further tries of a trial that failed.
    `evaluation`: a name of the trials' evaluation, "" without one; what has finished with another runs again.
    """

    folder: Path
    ranks: int
    cpus: int | None
    parallel: int | None
    retries: int
    grace_steps: int | None = None
    reduction: int = 3
    evaluation: str = ""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended: `outcome` is finished, ended early or failed; its last figures, and why it failed."""

    number: int
    outcome: str
    step: int | None = None
    clip1: float | None = None
    video1: float | None = None
    error: str | None = None


class Stopping:
    """An actor that all trials ask whether to stop, and that knows which of them are at work."""

    def __init__(self) -> None:
        self._asked = False
        self._working = set[int]()

    def ask(self) -> None:
        """Have all trials stop."""
        self._asked = True

    def asked(self) -> bool:
        """Whether trials are to stop."""
        return self._asked

    def set_working(self, number: int, working: bool) -> None:
        """Keep whether a trial is at work."""
        self._working = self._working | {number} if working else self._working - {number}

    def working(self) -> int:
        """How many trials are at work."""
        return len(self._working)


def run_trials(
    trials: Sequence[Trial], options: TuneOptions, show: Callable[[str], None]
) -> tuple[bool, list[TrialEnd]]:
    """Run trials to their ends: whether a signal stopped them, with everything saved; and the end of each if not.

    One that had finished before is not run again; others go on from their runs' checkpoints. `show` gets a line on
    each end. Raises CommandFailed where Ray Tune itself fails.
    """
    with StopRequests() as requests, ray_cluster() as ray:
        stopping, results, failed = actor_here(ray, Stopping), list[Any](), list[Exception]()

        def fit() -> None:
            try:
                results.append(_tuner(ray, trials, options, stopping, show).fit())
            except Exception as error:
                failed.append(error)

        # In a thread of its own: in the main one Tune would answer SIGINT itself.
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive() and not requests.asked:
            thread.join(_LOOK_SECONDS)
        if thread.is_alive():
            ray.get(stopping.ask.remote())
            end = time.monotonic() + _STOP_SECONDS
            while ray.get(stopping.working.remote()) and time.monotonic() < end and not requests.forced:
                time.sleep(_LOOK_SECONDS)
            return True, []
        if failed:
            raise CommandFailed(f"Ray Tune failed: {failed[0]}; the same command goes on") from failed[0]
        return False, [_end_of(result) for result in results[0]]


def trial_resources(
    cluster: dict[str, float], nodes: Sequence[dict[str, float]], options: TuneOptions
) -> dict[str, float]:
    """CPUs and GPUs that a trial takes, of what the cluster and each of its nodes have.

    A GPU a rank, with the CPUs that come with them, where there are GPUs; else all CPUs of the smallest node.
    """
    gpus = int(cluster.get("GPU", 0))
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= options.ranks] if gpus else []
    if with_gpus:
        share = min(int(node.get("CPU", 1) * options.ranks // node["GPU"]) for node in with_gpus)
        return {"cpu": options.cpus or max(1, share), "gpu": options.ranks}
    fewest = min((int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1), default=1)
    return {"cpu": options.cpus or fewest, "gpu": 0}


def _tuner(ray: Any, trials: Sequence[Trial], options: TuneOptions, stopping: Any, show: Callable[[str], None]) -> Any:
    """A tuner of the trials: the one that was interrupted, or a new one."""
    from ray import tune

    # Read by Tune (2.59, 2.60): seconds between two snapshots of what is finished; and the output that can be silent.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of trials that fail the command says so itself
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = trial_resources(ray.cluster_resources(), nodes, options)
    by_number = {trial.number: trial for trial in trials}
    trainable = tune.with_resources(tune.with_parameters(_trainable(), trials=by_number, stopping=stopping), resources)
    # By the number of trials: Tune adds none to a sweep that it restores. Runs of before are gone on with all the same.
    # And by their evaluation: what Tune holds to be finished has the figures of another one.
    name = "-".join(filter(None, ["tune", str(len(trials)), options.evaluation]))
    path = str(options.folder / name)
    if tune.Tuner.can_restore(path):
        try:
            return tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)
        except Exception as error:  # a snapshot that was cut short
            show(f"what Ray Tune kept of the sweep cannot be read ({error}): it begins anew, the runs go on")
            shutil.rmtree(path)
    scheduler = None
    if options.grace_steps is not None:
        from ray.tune.schedulers import ASHAScheduler

        scheduler = ASHAScheduler(
            time_attr="step", metric="clip1", mode="max", max_t=max(trial.steps for trial in trials) + 1,
            grace_period=options.grace_steps, reduction_factor=options.reduction,
        )  # fmt: skip
    return tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(sorted(by_number))},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=options.parallel),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(options.folder),
            failure_config=tune.FailureConfig(max_failures=options.retries),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),  # runs have theirs
            callbacks=[_shown_by(show)],
            verbose=0,
        ),
    )


def _trainable() -> Any:
    """The class of Tune's actors: each runs one trial."""
    from ray import tune

    class TrialActor(tune.Trainable):
        """One trial's process, asked for a report a step."""

        def setup(  # type: ignore[override]  # with what `with_parameters` holds
            self, config: dict[str, Any], trials: dict[int, Trial], stopping: Any
        ) -> None:
            """See Tune."""
            import ray

            self.ray, self.stopping, self.number = ray, stopping, int(config["number"])
            self.process = TrialProcess(trials[self.number], lambda: bool(ray.get(stopping.asked.remote())))
            ray.get(stopping.set_working.remote(self.number, True))

        def step(self) -> dict[str, Any]:
            """See Tune: ends with the next validation, or with the trial."""
            try:
                report = self.process.report()
            except TrialStopped:
                self.ray.get(self.stopping.set_working.remote(self.number, False))
                time.sleep(_IDLE_SECONDS)  # Tune is to know it as unfinished
                raise
            return {**report, "done": report["finished"]}

        def cleanup(self) -> None:
            """See Tune."""
            self.process.end()
            self.ray.get(self.stopping.set_working.remote(self.number, False))

    return TrialActor


def _shown_by(show: Callable[[str], None]) -> Any:
    """Tune's callback that says what becomes of trials."""
    from ray import tune

    class Shown(tune.Callback):
        """Lines on trials."""

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            """See Tune."""
            if not result["finished"]:
                best = f"clip@1 {100 * result['clip1']:.1f} % at best"
                show(f"trial {trial.config['number']}: step {result['step']}, {best}")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """See Tune."""
            ended = "finished" if (trial.last_result or {}).get("finished") else "ended early"
            show(f"trial {trial.config['number']}: {ended}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """See Tune."""
            show(f"trial {trial.config['number']}: failed")

    return Shown()


def _end_of(result: Any) -> TrialEnd:
    """The end of a trial by what Tune says of it."""
    figures = result.metrics or {}
    outcome = "failed" if result.error else "finished" if figures.get("finished") else "ended early"
    return TrialEnd(
        number=int(result.config["number"]),
        outcome=outcome,
        step=figures.get("step"),
        clip1=figures.get("clip1"),
        video1=figures.get("video1"),
        error=_last_line(result.error) if result.error else None,
    )


def _last_line(error: BaseException) -> str:
    """What an error says in its last line, below the traces that Ray puts above it; else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
