"""A connection to Ray: the cluster of RAY_ADDRESS, else one on this machine for as long as the command runs."""

import functools
import importlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from cluster.launch.on_ray.auth import authenticate, is_about_token, own_token, token_refused
from cluster.launch.on_ray.exit_notice import exit_notice
from cluster.launch.on_ray.folder import session_folder
from cluster.launch.signals import (
    FORCED,
    ended_at_second_signal,
    is_forced,
    signals_ignored,
    signals_postponed,
)
from cluster.terminal.output import end_process
from cluster.terminal.progress import working
from sharding.base import environment
from sharding.base.errors import CommandFailed, UserError
from sharding.base.exit_codes import STOPPED

_LEAVE_SECONDS = 30.0
_CONNECT_SECONDS = 90.0  # to a named cluster: Ray itself would wait for ever for a head that takes connections


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """The module `ray`, connected; a cluster of this machine listens on loopback alone, with a token of its own.

    A second signal ends the process within seconds, wherever Ray's library is; at once while it connects, for nothing
    has begun. Raises UserError if RAY_ADDRESS names a cluster that does not answer or takes no token of ours, or no
    folder is fit for Ray's session.
    """
    # Read by Ray (2.59, 2.60) as it starts: relative paths stay the command's; the trainer that this file is written
    # for; and a task without GPUs still sees those that CUDA_VISIBLE_DEVICES names.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Seconds in which a node that seemed alive has to give what it seemed to have.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    address = environment.ray_address()
    if address:
        authenticate(address)
    folder = None if address else session_folder()
    with (
        exit_notice() as dismiss_notice,
        nullcontext() if address else own_token(),
        ended_at_second_signal(dismiss_notice),
    ):
        yield from _connected(address, folder, dismiss_notice)


def _connected(address: str | None, folder: str | None, dismiss_notice: Callable[[], None]) -> Iterator[Any]:
    failed: list[BaseException] = []
    tried, over = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with _sessions_of_their_own(), _without_raylets_words(), nullcontext() if address else _on_loopback():
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
    stderr: AbstractContextManager[list[str]] = _stderr_kept() if address else nullcontext([])
    try:
        what = f"connecting to the Ray cluster at {address}" if address else "starting Ray"
        with _connecting() as came:
            with os.fdopen(os.dup(2), "w") as beside, working(what, stream=beside), stderr as words:
                import ray

                holder.start()
                end = time.monotonic() + (_CONNECT_SECONDS if address else float("inf"))
                while not tried.wait(1) and not is_forced(came) and time.monotonic() < end:
                    signal.alarm(0)
            if not tried.is_set() and is_forced(came):
                dismiss_notice()
                print(FORCED, file=sys.stderr)
                end_process(STOPPED)
        if not tried.is_set():
            what = f"the Ray cluster takes a connection and says nothing for {_CONNECT_SECONDS:.0f} s"
            remedy = "see on the head whether it lives (ray status), or start it anew"
            raise UserError(what, f"RAY_ADDRESS={address}", remedy)
        if failed:
            raise _connection_error(failed[0], address, "".join(words))
        yield ray
    finally:
        over.set()
        with signals_ignored():
            if holder.is_alive() and tried.is_set():
                holder.join(timeout=_LEAVE_SECONDS)


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
def _without_raylets_words() -> Iterator[None]:
    """Have Ray print none of its nodes' messages, many lines for a fault that the command tells in one.

    They are in its session's logs. Leans on `ray._private.worker.listen_error_messages`, the thread's function by which
    Ray (2.59, 2.60) prints them.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    listen = worker.listen_error_messages
    worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = listen


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a cluster that Ray starts listen on 127.0.0.1 alone, and not on every interface.

    That is what Ray (2.59, 2.60) does where no other machine can join: leans on
    `ray._private.ray_constants.ENABLE_RAY_CLUSTER`, and on the variable from which its processes read it.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    kept = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment.variables_set({constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = kept


@contextmanager
def _connecting() -> Iterator[list[float]]:
    """Signals are answered afterwards. At SIGTERM Ray sets an alarm that would abort the process: it is taken back.

    Gives the times at which they come.
    """
    try:
        with signals_postponed() as came:
            yield came
    finally:
        signal.alarm(0)


@contextmanager
def _stderr_kept() -> Iterator[list[str]]:
    """Keep what comes to standard error inside the `with`; gives it at its end, and passes on what is not of tokens.

    Ray's library writes a line a second about a token that a cluster does not take, and then says that none answers.
    """
    words: list[str] = []
    sys.stderr.flush()
    outside = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield words
            finally:
                sys.stderr.flush()
                os.dup2(outside, 2)
                file.seek(0)
                words.append(file.read().decode(errors="replace"))
                rest = [line for line in words[0].splitlines(keepends=True) if not is_about_token(line)]
                os.write(2, "".join(rest).encode())
    finally:
        os.close(outside)


def _connection_error(error: BaseException, address: str | None, words: str) -> BaseException:
    """The error to raise where Ray did not start: a UserError where a named cluster does not answer.

    `words`: what Ray's library wrote meanwhile.
    """
    if is_about_token(f"{type(error).__name__} {error} {words}"):
        return token_refused(str(address))
    if not isinstance(error, ConnectionError):
        return error
    remedy = "start it, correct RAY_ADDRESS, or unset it to run on this machine"
    return UserError(f"no Ray cluster answers ({error})", f"RAY_ADDRESS={address}", remedy)


def actor_here(ray: Any, actor: type) -> Any:
    """A handle of an actor on this node and no other, which takes no CPU and is started again where it dies."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(actor).remote()


def kill_actors(ray: Any, name: str) -> None:
    """Kill this command's actors of a class, by its name: for those of which Ray gives no handle.

    Leans on what `ray.kill` (2.59, 2.60) itself calls.
    """
    state: Any = importlib.import_module("ray._private.state")  # a DeveloperAPI
    worker: Any = importlib.import_module("ray._private.worker").global_worker
    for actor, its in state.actors(job_id=worker.current_job_id).items():
        if its["ActorClassName"].rpartition(".")[2] == name and its["State"] != "DEAD":
            worker.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)


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


def node_cpus(ray: Any) -> list[float]:
    """CPU slots of each node that Ray calls alive."""
    return [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
