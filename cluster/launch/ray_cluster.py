"""A connection to Ray: the cluster of RAY_ADDRESS, else one on this machine for as long as the command runs."""

import functools
import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.launch.ray_folder import session_folder
from cluster.launch.signals import raise_if_interrupted, signals_ignored, signals_postponed
from sharding.base import environment
from sharding.base.errors import CommandFailed, UserError

_LOOK_SECONDS = 1.0


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """The module `ray`, connected.

    Raises UserError if RAY_ADDRESS names a cluster that does not answer, or no folder is fit for Ray's session.
    """
    # Read by Ray (2.59, 2.60) as it starts: relative paths stay the command's; the trainer that this file is written
    # for; and a task without GPUs still sees those that CUDA_VISIBLE_DEVICES names.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = environment.ray_address()
    folder = None if address else session_folder()
    failed: list[BaseException] = []
    tried, over = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with _sessions_of_their_own():
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
        except BaseException as error:
            failed.append(error)
        tried.set()
        over.wait()
        ray.shutdown()

    # A signal must not leave Ray half connected, and in the main thread Ray would answer SIGTERM itself, and end there.
    # The thread stays, for Ray's processes die with the thread that started them.
    holder = threading.Thread(target=hold, daemon=True)
    try:
        with _connecting():
            import ray

            holder.start()
            while not tried.wait(1):
                signal.alarm(0)
        if failed:
            raise _connection_error(failed[0], address)
        yield ray
    finally:
        over.set()
        with signals_ignored():
            if holder.is_alive():
                holder.join()


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Have Ray start its processes in sessions of their own.

    A signal to the command's whole process group, as `timeout`, a closed terminal or a scheduler sends it, would end
    them beside the command, which needs them to stop in order. They die with it all the same: Ray asks the kernel for
    that. Leans on `ray._private.services.ConsolePopen`, by which Ray (2.59, 2.60) starts all of them.
    """
    services: Any = importlib.import_module("ray._private.services")
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextmanager
def _connecting() -> Iterator[None]:
    """Signals are answered afterwards. At SIGTERM Ray sets an alarm that would abort the process: it is taken back."""
    try:
        with signals_postponed():
            yield
    finally:
        signal.alarm(0)


def _connection_error(error: BaseException, address: str | None) -> BaseException:
    """The error to raise where Ray did not start: a UserError where a named cluster does not answer."""
    if not isinstance(error, ConnectionError):
        return error
    remedy = "start it, correct RAY_ADDRESS, or unset it to run on this machine"
    return UserError(f"no Ray cluster answers ({error})", f"RAY_ADDRESS={address}", remedy)


def first_ready(ray: Any, references: list[Any]) -> Any:
    """The first of some tasks that is done. A signal is answered meanwhile, which Ray's own wait leaves for its end."""
    while True:
        raise_if_interrupted()
        ready, _ = ray.wait(references, num_returns=1, timeout=_LOOK_SECONDS)
        if ready:
            return ready[0]


def result_of(ray: Any, reference: Any) -> Any:
    """What a task returned. Raises the UserError or CommandFailed that it raised, as it was raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | CommandFailed):
            raise error.cause from None
        raise


def is_gone(ray: Any, error: BaseException) -> bool:
    """Whether a task has ended because its process or its node did: killed, out of memory, or crashed in a library."""
    lost = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError", "RaySystemError")
    return isinstance(error, tuple(getattr(ray.exceptions, name) for name in lost))


def cpus(ray: Any) -> int:
    """CPU slots of the whole cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
