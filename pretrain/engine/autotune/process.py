"""The child process that autotunes, as its parent handles it: started, given a task, listened to and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import suppress

from pydantic import BaseModel

from pretrain.engine.distributed import free_port
from sharding.base import environment
from sharding.base.child_process import exit_code, signal_of, start_child

MODULE = "pretrain.engine.autotune.child"
_TO_END = 30.0  # seconds, after it was killed


class CannotStart(Exception):
    """There is no child process that measures, or none that lasts for reasons that are no path's."""


class AutotuneProcess:
    """A process that measures once it is given a task. Until then it loads what it needs, and opens its device.

    It is of a session of its own; `words` is the file descriptor that its words come from.
    Raises CannotStart if there can be none.
    """

    def __init__(self, module: str = MODULE) -> None:
        self.words, its_end = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        try:
            self._process = start_child(
                module,
                "main",
                [its_end],
                env=environment.as_only_rank(free_port()),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            os.close(self.words)
            self._errors.close()
            raise CannotStart(str(error)) from error
        finally:
            os.close(its_end)

    def give(self, task: BaseModel) -> None:
        """Have it do the task. One that has ended by then tells so by its words' end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(task.model_dump_json().encode())
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def ended(self) -> str:
        """How it ended, in words, and the last line that it wrote of it. Waits for it."""
        code = exit_code(self._process, _TO_END)
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"ended with {signal_of(code) or f'exit code {code}'}"
        return f"{how} ({last})" if last else how

    def end(self) -> None:
        """End it, with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a call into a driver that does not return outlives the signal
            self._process.wait(_TO_END)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self.words)
        self._errors.close()


class PrestartedProcess:
    """At most one child that is begun before its task is known, while stores are opened and ranks meet."""

    def __init__(self) -> None:
        self._child: AutotuneProcess | None = None

    def start(self, module: str = MODULE) -> None:
        """Have one ready soon. Where none can start, `take` tells."""
        if self._child is None:
            with suppress(CannotStart):
                self._child = AutotuneProcess(module)

    def take(self, module: str = MODULE) -> AutotuneProcess:
        """The spare one, now the caller's, else a new one. Raises CannotStart."""
        child, self._child = self._child, None
        return child or AutotuneProcess(module)

    def end(self) -> None:
        """Let go of the one that nobody took."""
        if self._child is not None:
            self._child.end()
            self._child = None


PRESTARTED = PrestartedProcess()
