"""What videos do to a decoder, done by functions that a child process can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sharding.base.errors import UserError
from sharding.media.input.bad_video import BadVideo

Alive = Callable[[int], None]


def numbers(count: int, alive: Alive) -> Iterator[int]:
    for number in range(count):
        alive(number)
        yield number


def whoami(alive: Alive) -> Iterator[int]:
    yield os.getpid()


def large(count: int, size: int, alive: Alive) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size


def die(number: int, items: int, alive: Alive) -> Iterator[int]:
    yield from range(items)
    os.kill(os.getpid(), number)


def die_at_first(mark: Path, alive: Alive) -> Iterator[str]:
    yield "first" if not mark.exists() else "second"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    yield "end"


def die_then_hang(mark: Path, alive: Alive) -> Iterator[int]:
    if mark.exists():
        time.sleep(600)
    mark.touch()
    os.kill(os.getpid(), signal.SIGSEGV)
    yield 1


def leave(code: int, alive: Alive) -> Iterator[int]:
    yield 1
    os._exit(code)


def hang(alive: Alive) -> Iterator[int]:
    yield 1
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(600)


def slow_but_alive(seconds: float, alive: Alive) -> Iterator[int]:
    end = time.monotonic() + seconds
    frames = 0
    while time.monotonic() < end:
        frames += 1
        alive(frames)
        time.sleep(0.005)
    yield frames


def write_pid_and_hang(path: Path, alive: Alive) -> Iterator[int]:
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    time.sleep(600)
    yield 1


def score(alive: Alive) -> Iterator[str]:
    yield Path("/proc/self/oom_score_adj").read_text().strip()


def fail(kind: str, alive: Alive) -> Iterator[int]:
    yield 1
    raise {
        "bad": BadVideo("no_video", "it has no frames", "a detail"),
        "user": UserError("what", "where", "remedy"),
        "memory": MemoryError("much"),
        "absent": FileNotFoundError(2, "No such file", "a.mp4"),
        "reset": ConnectionResetError(104, "Connection reset by peer"),
        "end": EOFError("the end"),
        "value": ValueError("a bug"),
    }[kind]


def open_nothing(alive: Alive) -> Iterator[int]:
    import av

    av.open("absent.mp4")
    yield 1
