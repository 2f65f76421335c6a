"""Ways in which transcoding fails, done by functions that a child process can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from sharding.corpora.manifest import Video
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import Source
from sharding.media.transcode import transcode_with_cost


def missing_frames(*_: object) -> Iterator[Any]:
    yield from ()
    raise BadVideo("missing_frames", "only 3 of 20 declared frames decode")


def by_zero(*_: object) -> Iterator[Any]:
    yield from ()
    raise ZeroDivisionError("of all things")


def too_large(*_: object) -> Iterator[Any]:
    yield from ()
    raise MemoryError("of all things")


def naming_its_modules(*_: object) -> Iterator[Any]:
    yield from ()
    raise BadVideo(
        "not_video", " ".join(name for name in ("pyarrow", "torch", "s3fs") if name in sys.modules) or "none"
    )


def of_the_machine(number: int, *_: object) -> Iterator[Any]:
    yield from ()
    raise OSError(number, os.strerror(number))


def poisonous(source: Source, video: Video, settings: Any, threads: int, alive: Callable[[int], None]) -> Iterator[Any]:
    """Transcode as usual, but crash or hang on videos named so."""
    made = transcode_with_cost(source, video, settings, threads, alive)
    if "crash" in video.uri:
        yield next(made)
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in video.uri:
        yield next(made)
        time.sleep(1000)
    yield from made
