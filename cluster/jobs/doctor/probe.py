"""A trial in a child process with a time limit: a library that is broken, crashes or hangs ends the child alone."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar, cast

from cluster.launch.signals import raise_if_interrupted
from sharding.base.child_process import end_children, exit_code, signal_of, start_connected
from sharding.base.errors import UserError
from sharding.base.redact import redacted

T = TypeVar("T")

_LOOK_SECONDS = 0.2
_SHOWN = 300  # characters of an error


class TrialFailed(Exception):
    """A trial raised, crashed or hung; the text says which, in one line."""


def tried(function: Callable[..., T], *arguments: Any, seconds: float) -> T:
    """What a module's function returns for these arguments in a process of its own, killed after so many seconds.

    Arguments and result are pickled. Raises UserError as the function raised it, and TrialFailed for anything else that
    ends it.
    """
    result = tried_by_name(function.__module__, function.__qualname__, *arguments, seconds=seconds)
    return cast(T, result)


def tried_by_name(module: str, function: str, *arguments: Any, seconds: float) -> Any:
    """As `tried`, of a function in a module that is imported in the child alone, because that may be what fails."""
    with tempfile.TemporaryFile() as words:
        child, pipe = start_connected(__name__, "serve_trial", stdout=words, stderr=words)
        try:
            with pipe:
                pipe.send((module, function, arguments))
                answer = _answer(pipe, seconds)
            if answer is None:
                code = exit_code(child)
                how = f"was ended by {signal_of(code)}" if code < 0 else f"ended with exit code {code}"
                raise TrialFailed(f"the process that tried it {how}{_last_line(words)}")
        finally:
            end_children([child])
    kind, *content = answer
    if kind == "mistake":
        raise UserError(*content)
    if kind == "error":
        raise TrialFailed(content[0])
    return content[0]


def serve_trial(handle: int) -> None:
    """The child: answers the call that comes on this connection."""
    with Connection(handle) as pipe:
        module, function, arguments = pipe.recv()
        try:
            answer: tuple[Any, ...] = ("result", getattr(import_module(module), function)(*arguments))
        except UserError as error:
            answer = ("mistake", error.what, error.where, error.remedy)
        except Exception as error:
            answer = ("error", one_line(error))
        pipe.send(answer)
    sys.stdout.flush()
    os._exit(0)  # threads of libraries may hang at an interpreter's end


def one_line(error: BaseException) -> str:
    """An error's type and text, on one line of reasonable length, without secrets."""
    text = " ".join(redacted(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _answer(pipe: Connection, seconds: float) -> Any:
    """What the child sent; None if it ended before. Raises TrialFailed once the time is up."""
    end = time.monotonic() + seconds
    while not pipe.poll(min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
        raise_if_interrupted()
        if time.monotonic() > end:
            raise TrialFailed(f"it hung: no answer within {seconds:.0f} s")
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        return None


def _last_line(words: IO[bytes]) -> str:
    """The last line that the child wrote, as the end of a sentence; "" if it wrote none."""
    words.seek(0)
    lines = words.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {redacted(last)[:_SHOWN]}" if last else ""
