"""Commands as jobs of a Ray cluster, by its job API: submitted, listed, followed, and asked to stop."""

import datetime
import importlib
import logging
import re
import secrets
import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from cluster.launch.choose import choose_launcher
from cluster.launch.signals import ended_at_second_signal, raise_if_interrupted
from sharding.base import environment
from sharding.base.errors import CommandFailed, UserError
from sharding.base.exit_codes import DONE, STOPPED
from sharding.base.redact import redacted, require_no_password

STOP_SECONDS = 600  # that a command which is asked to stop may take to save, before Ray kills it
_ENDED = "reelscale: the job's command ended with exit code"
_ENDED_LINE = re.compile(rf"^{re.escape(_ENDED)} (\d+)$", re.MULTILINE)
_COMMAND = "reelscale"  # the key of a job's metadata that holds its command line
_CONNECT_SECONDS = 5.0
_SILENT_SECONDS = 30.0  # without a byte of an answer; or of a job that is followed, until its state is asked for
_LOOK_SECONDS = 0.5
_HANGS = "see on the head whether its dashboard hangs (dashboard.log in /tmp/ray/session_latest/logs), or start it anew"
_MOST_NODES = 2000


@dataclass(frozen=True)
class JobState:
    """A job: its command line, whether it is waiting, running, done, stopped or failed, and when that began and ended.

    `stopped`: everything is saved, the same command goes on. Times are in ISO 8601, None where there is none yet.
    """

    job: str
    command: str
    state: str
    began: str | None
    ended: str | None
    exit_code: int | None


@dataclass(frozen=True)
class NodeState:
    """A node of the cluster: its address, whether Ray calls it alive or dead, and how many CPUs and GPUs it has."""

    node: str
    address: str
    is_head: bool
    state: str
    cpus: float | None
    gpus: float | None


def command_words(arguments: Sequence[str]) -> list[str]:
    """A command line's words, without those that say where it is to run, and how that is printed here."""
    words, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--address":
            del rest[:1]
        elif word not in ("--detach", "--json") and not word.startswith("--address="):
            words.append(word)
    return words


def entrypoint(words: Sequence[str], folder: str, python: str) -> str:
    """The shell line of a job that runs a command in a folder, with this interpreter or else the `reelscale` there.

    Ray sends SIGTERM to the shell as well as to the command: the shell outlasts it, and writes the exit code, which
    Ray does not keep of a job that was stopped.
    """
    own = f'if [ -x {shlex.quote(python)} ]; then set -- {shlex.quote(python)} -m cluster.cli "$@"'
    return (
        f"trap : TERM; cd {shlex.quote(folder)} || exit 2; set -- {shlex.join(words)}; "
        f'{own}; else set -- reelscale "$@"; fi; "$@"; code=$?; echo "{_ENDED} $code"; exit $code'
    )


def state_word(status: str, exit_code: int | None) -> str:
    """A job's state in our words, from Ray's and its command's exit code."""
    if status in ("PENDING", "RUNNING"):
        return "waiting" if status == "PENDING" else "running"
    if exit_code is None:
        return "stopped" if status == "STOPPED" else "failed"
    return {DONE: "done", STOPPED: "stopped"}.get(exit_code, "failed")


class RayJobs:
    """The jobs of the cluster of RAY_ADDRESS. Raises UserError for one whose job API does not answer, or refuses."""

    def __init__(self) -> None:
        address = environment.ray_address()
        if not address:
            remedy = "name one: --address HOST:PORT, or RAY_ADDRESS"
            raise UserError("jobs are those of a Ray cluster, and none is named", "--address", remedy)
        self._where = f"RAY_ADDRESS={address}"
        choose_launcher("ray")
        _require_answer(address)
        with self._errors_in_words(), ended_at_second_signal(lambda: None):  # where Ray's library looks for its head
            self._client = _client(address)

    def submit(self, arguments: Sequence[str]) -> str:
        """Hand a command line of `reelscale` to the cluster; the job's id.

        It runs on the head node, in this folder's path there, with the environment of the cluster: of this process'
        environment nothing goes along.
        """
        words = command_words(arguments)
        for word in words:
            require_no_password(word.partition("=")[2] if "=" in word else word)
        now = datetime.datetime.now(datetime.UTC)
        job = f"{words[0]}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with self._errors_in_words():
            return cast(
                str,
                self._client.submit_job(
                    entrypoint=entrypoint(words, str(Path.cwd()), sys.executable),
                    submission_id=job,
                    metadata={_COMMAND: shlex.join(words)},
                    runtime_env={"env_vars": {environment.RAY_JOB_STOP_SECONDS: str(STOP_SECONDS)}},
                ),
            )

    def all(self) -> list[JobState]:
        """The states of all submitted jobs, the newest last."""
        with self._errors_in_words():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
            return [self._state(job) for job in sorted(jobs, key=lambda job: job.start_time or 0)]

    def state(self, job: str) -> JobState:
        """A job's state. Raises UserError for one that the cluster does not have."""
        with self._errors_in_words(job):
            return self._state(self._client.get_job_info(job))

    def nodes(self) -> list[NodeState]:
        """The cluster's nodes, the head first; one that was cut off is alive for another minute.

        They are asked for by Ray's API for states (2.59, 2.60), which is not a stable one.
        """
        from ray.util.state import list_nodes

        with self._errors_in_words():
            nodes = list_nodes(limit=_MOST_NODES, timeout=int(_CONNECT_SECONDS), raise_on_missing_output=False)
        nodes.sort(key=lambda node: (not node.is_head_node, node.state, node.node_ip))
        return [
            NodeState(
                node=node.node_id,
                address=node.node_ip,
                is_head=bool(node.is_head_node),
                state=str(node.state).lower(),
                cpus=(node.resources_total or {}).get("CPU"),
                gpus=(node.resources_total or {}).get("GPU"),
            )
            for node in nodes
        ]

    def log(self, job: str) -> str:
        """All that a job has printed. Raises UserError for one that the cluster does not have."""
        with self._errors_in_words(job):
            return cast(str, self._client.get_job_logs(job))

    def follow(self, job: str, show: Callable[[str], None]) -> JobState:
        """Show what a job has printed and prints, until it ends; its last state."""
        import asyncio

        self.state(job)

        async def read() -> None:
            texts = cast(AsyncIterator[str], self._client.tail_job_logs(job))
            coming = asyncio.ensure_future(anext(texts))
            while True:
                ready, _ = await asyncio.wait({coming}, timeout=_SILENT_SECONDS)
                if ready:
                    try:
                        show(coming.result())
                    except StopAsyncIteration:
                        return
                    coming = asyncio.ensure_future(anext(texts))
                elif (await asyncio.to_thread(self.state, job)).ended is not None:  # raises if nobody answers
                    return

        with self._errors_in_words(job):
            asyncio.run(read())
        return self.state(job)

    def stop(self, job: str, seconds: float) -> JobState:
        """Ask a job to stop, and wait until it has, at most `seconds`; its state then.

        Its command gets SIGTERM, and STOP_SECONDS to save in.
        """
        state = self.state(job)
        if state.ended is not None:
            return state
        with self._errors_in_words(job):
            self._client.stop_job(job)
        deadline = time.monotonic() + seconds
        while (state := self.state(job)).ended is None and time.monotonic() < deadline:
            raise_if_interrupted()
            time.sleep(_LOOK_SECONDS)
        return state

    def _state(self, job: Any) -> JobState:
        code = job.driver_exit_code
        if code is None and job.status == "STOPPED":
            code = self._logged_code(job.submission_id)
        command = (job.metadata or {}).get(_COMMAND, job.entrypoint)
        return JobState(
            job=job.submission_id,
            command=redacted(command),
            state=state_word(str(job.status.value), code),
            began=_time(job.start_time),
            ended=_time(job.end_time),
            exit_code=code,
        )

    def _logged_code(self, job: str) -> int | None:
        """The exit code that the job's shell wrote last; None where it was killed before, or its log is gone."""
        try:
            codes = _ENDED_LINE.findall(self._client.get_job_logs(job))
        except RuntimeError:
            return None
        return int(codes[-1]) if codes else None

    @contextmanager
    def _errors_in_words(self, job: str = "") -> Iterator[None]:
        """Raise UserError for what Ray raises (2.59, 2.60) of a cluster whose job API is missing, hangs or refuses."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError, RpcError

        requests: Any = importlib.import_module("requests")  # by which Ray asks, and which it brings along
        try:
            yield
        except AuthenticationError as error:
            remedy = "give the cluster's token: RAY_AUTH_TOKEN_PATH=FILE, RAY_AUTH_TOKEN or ~/.ray/auth_token"
            raise UserError(
                "the cluster asks for a token, and refuses this one or none", self._where, remedy
            ) from error
        except requests.exceptions.ReadTimeout as error:
            what = f"the cluster's job API takes a connection and says nothing for {_SILENT_SECONDS:.0f} s"
            raise UserError(what, self._where, _HANGS) from error
        except RpcError as error:
            remedy = "see on the head whether it lives (ray status), or start it anew"
            raise UserError(f"the Ray cluster does not answer ({error})", self._where, remedy) from error
        except (OSError, ValueError) as error:
            remedy = "start the head with its dashboard: pip install 'reelscale[ray]' there, then ray start --head"
            raise UserError(f"the cluster's job API does not answer ({error})", self._where, remedy) from error
        except (RuntimeError, ClientError) as error:
            text = str(error)
            if job and ("does not exist" in text or "status code 404" in text):
                raise UserError("the cluster has no such job", job, "reelscale status shows its jobs") from error
            if "ray[default]" in text:
                raise UserError("Ray's job API is not installed", "ray", "pip install 'reelscale[ray]'") from error
            raise CommandFailed(f"the cluster's job API failed: {text.strip()[:500]}") from error


def _client(address: str) -> Any:
    """The client of the job API. Raises AuthenticationError where a token is wanted and there is none.

    That is asked first, by Ray's private functions (2.59, 2.60): its client of the GCS ends the process for it. Its
    requests have no time limit of their own: they get one by `_do_request`, which hands on what `requests` takes.
    """
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):  # which say how they connect and that they do no more
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **options, timeout=(_CONNECT_SECONDS, _SILENT_SECONDS))

    return Client(address)


def _require_answer(address: str) -> None:
    """Raise UserError unless something listens at HOST:PORT or at a URL: Ray would try for a minute.

    `auto` is the cluster of this machine, which Ray finds by its files.
    """
    if address == "auto":
        return
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if not place.hostname or not place.port:
            raise ValueError("no HOST:PORT")
        socket.create_connection((place.hostname, place.port), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        remedy = "start the cluster (ray start --head), or correct the address"
        raise UserError(f"no Ray cluster answers ({error})", f"RAY_ADDRESS={address}", remedy) from error


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat(timespec="seconds")
