"""A child process for what may crash or hang: a poisonous video ends the child, not the worker."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from sharding.base.child_process import end_children, exit_code, signal_of, start_connected
from sharding.base.errors import UserError
from sharding.base.redact import redacted
from sharding.media.input.bad_video import BadVideo
from sharding.media.spool import Spool

T = TypeVar("T")
Function = Callable[..., Iterator[T]]  # of a module; called with the arguments and then `alive`

_BEAT_SECONDS = 0.2  # between two signs of life
_START_SECONDS = 120.0
_READY, _ITEM, _ALIVE, _DONE, _RAISED = b"ready", b"item", b"alive", b"done", b"raised"


class ChildDied(Exception):
    """The child ended before its work did. `code` is its exit code, or minus the signal that ended it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return signal_of(self.code) or f"exit {self.code}"


class ChildStalled(Exception):
    """The child gave no sign of life for so many seconds, and was killed."""


class Isolated:
    """One child process that runs generator functions, one at a time; started when first needed, and after a death.

    A context manager; `close` ends the child at once. It also dies with this process, and if the kernel is short of
    memory, before it. Use it from one thread.
    """

    def __init__(self, stall_seconds: float) -> None:
        self.stall_seconds = stall_seconds
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._busy = False

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Function[T], *arguments: Any) -> Iterator[T]:
        """What `function(*arguments, alive)` yields in the child, as it comes.

        The function calls `alive(n)` with any number as it gets on; without that or an item for `stall_seconds` it is
        killed and ChildStalled raised. Raises ChildDied if the child dies, the function's own BadVideo, UserError,
        MemoryError or OSError, and RuntimeError with the child's traceback for any other error.
        """
        return (pickle.loads(item) for item in self._run(function, arguments))

    def all_of(self, function: Function[T], *arguments: Any, folder: str | os.PathLike[str]) -> Iterator[T]:
        """As `run`, but begins to yield when the whole work is done, which waits in `folder` if it is large.

        A first death is tried once more in a fresh child. Raises BadVideo of the kind "crashed" for the second, and of
        the kind "stalled" for a stall.
        """
        for last in (False, True):
            try:
                return self._spooled(function, arguments, folder).items()
            except ChildDied as death:
                if last:
                    raise BadVideo("crashed", _crash(death), f"{death}, twice") from None
            except ChildStalled:
                detail = f"no frame in {self.stall_seconds:g} seconds"
                raise BadVideo("stalled", "the decoder hangs on it", detail) from None
        raise AssertionError

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            process, pipe = self._child
            self._child = None
            end_children([process])
            pipe.close()

    def _spooled(self, function: Function[T], arguments: tuple[Any, ...], folder: str | os.PathLike[str]) -> Spool:
        spool = Spool(Path(folder))
        try:
            with closing(self._run(function, arguments)) as items:
                for item in items:
                    spool.add(item)
            spool.rewind()
        except BaseException:
            spool.close()
            raise
        return spool

    def _run(self, function: Function[Any], arguments: tuple[Any, ...]) -> Generator[bytes]:
        """The items, pickled."""
        child = process, pipe = self._child_with(pickle.dumps((function, arguments)))
        self._busy, finished = True, False
        try:
            while True:
                if self._child is not child:  # it was ended for other work, or by `close`
                    raise ChildDied(exit_code(process))
                if not pipe.poll(self.stall_seconds):
                    raise ChildStalled(self.stall_seconds)
                kind = pipe.recv_bytes()
                if kind == _ITEM:
                    yield pipe.recv_bytes()
                elif kind == _DONE:
                    finished = True
                    return
                elif kind == _RAISED:
                    error = pickle.loads(pipe.recv_bytes())
                    finished = True
                    raise error
        except (EOFError, ConnectionError) as error:
            if finished:  # the function's own error
                raise
            raise ChildDied(exit_code(process)) from error
        finally:
            if self._child is child:
                self._busy = False
                if not finished:  # stalled, dead, or left by a caller who wants no more: what it does now is unknown
                    self.close()

    def _child_with(self, work: bytes) -> tuple[subprocess.Popen[bytes], Connection]:
        """A child that has the work: the one there is, unless it died meanwhile or is at other work that was left."""
        if self._child is not None and not self._busy:
            with suppress(OSError):
                self._child[1].send_bytes(work)
                return self._child
        self.close()
        self._child = _started()
        with suppress(OSError):  # a child that died already is noticed when it is asked
            self._child[1].send_bytes(work)
        return self._child


def serve(fd: int) -> None:
    """Do, in the child, what comes through the socket `fd`, until it ends."""
    pipe = Connection(fd)
    with suppress(EOFError, ConnectionError):
        pipe.send_bytes(_READY)
        while True:
            work = pipe.recv_bytes()
            try:
                function, arguments = pickle.loads(work)
                for item in function(*arguments, _beat(pipe)):
                    _send(pipe, _ITEM, pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
                    del item
            except ConnectionError as error:
                if getattr(error, "pipe", None) is pipe:
                    return
                _send(pipe, _RAISED, _pickled(error))
            except Exception as error:
                _send(pipe, _RAISED, _pickled(error))
            else:
                _send(pipe, _DONE)


def _started() -> tuple[subprocess.Popen[bytes], Connection]:
    """A child that is ready. Raises UserError if none gets so far, which is no video's fault."""
    problem = ""
    for _ in range(2):
        try:
            process, pipe = start_connected("sharding.media.isolation", "serve", expendable=True)
        except OSError as error:
            problem = str(error)
            continue
        try:
            if pipe.poll(_START_SECONDS) and pipe.recv_bytes() == _READY:
                return process, pipe
            problem = f"it is not ready after {_START_SECONDS:g} seconds"
        except (EOFError, ConnectionError):
            problem = f"{ChildDied(exit_code(process))}"
        end_children([process])
        pipe.close()
    remedy = "see the messages before this one; check this machine's free memory and the installation"
    raise UserError(f"the process that decodes videos cannot start: {problem}", sys.executable, remedy)


def _beat(pipe: Connection) -> Callable[[int], None]:
    """The function `alive`, which sends a sign of life, and another one a little later at the earliest."""
    last = 0.0

    def alive(_: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BEAT_SECONDS:
            last = now
            _send(pipe, _ALIVE)

    return alive


def _send(pipe: Connection, *messages: bytes) -> None:
    try:
        for message in messages:
            pipe.send_bytes(message)
    except ConnectionError as error:
        error.pipe = pipe  # type: ignore[attr-defined]  # the parent is gone: not the function's own trouble
        raise


def _pickled(error: Exception) -> bytes:
    """An error, pickled as the parent is to raise it."""
    if isinstance(error, BadVideo | UserError | MemoryError | OSError):
        with suppress(Exception):
            data = pickle.dumps(error)
            pickle.loads(data)
            return data
        if isinstance(error, OSError):
            return pickle.dumps(OSError(error.errno, error.strerror or str(error)))
    return pickle.dumps(RuntimeError(redacted("".join(traceback.format_exception(error)))))


def _crash(death: ChildDied) -> str:
    if death.code == -signal.SIGKILL:
        return "the process that decoded it was killed: perhaps it needs more memory than there is"
    return "the decoder crashed on it"
