"""Recognises errors of a lost device (a GPU that computes no more), and ends the process instead of hanging."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from sharding.base.errors import CommandFailed
from sharding.base.exit_codes import FAILED

log = logging.getLogger("reelscale")

_LOST = (  # in the messages of torch, Triton, cuBLAS, cuDNN and NCCL; after such an error every later call fails, too
    "CUDA error",
    "CUDA driver error",
    "misaligned address",
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "unhandled cuda error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
)
_NOT_LOST = ("out of memory", "no kernel image", "captur")  # what a CUDA graph's capture allows not: it alone ends
_TELLING = 10.0  # seconds for the message, which may hang on the disk
_FINISHING = 20.0  # seconds for what is done without the device


class DeviceLost(CommandFailed):
    """The device computes no more in this process, and the message says how it goes on."""


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the device computes no more in this process."""
    text = str(error)
    return isinstance(error, DeviceLost) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in _LOST)
        and not any(words in text for words in _NOT_LOST)
    )


@contextlib.contextmanager
def ends_on_device_loss(finish: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Inside the `with`, an error of a lost device ends this process within half a minute: one message, exit code 1.

    Whatever is closed, freed or left in order after such an error asks the device again, and may wait for it for ever;
    so nothing is. `finish`: what can be done without the device, as far as it is done in 20 s.
    """
    try:
        yield
    except Exception as error:
        if not is_device_lost(error):
            raise
        _end(error, finish)


def _end(error: BaseException, finish: Callable[[], object]) -> NoReturn:
    for act, seconds in ((lambda: _tell(error), _TELLING), (finish, _FINISHING)):
        thread = threading.Thread(target=_quietly, args=(act,), name="device lost", daemon=True)
        thread.start()
        thread.join(seconds)
    os._exit(FAILED)


def _quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(BaseException):  # the message is out, and is the only one
        act()


def _tell(error: BaseException) -> None:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, DeviceLost):
        log.error("%s", error)
    else:
        log.error(
            "training failed: the device is lost (%s, in %s, line %d); the same command goes on from the last "
            "checkpoint, and with CUDA_LAUNCH_BLOCKING=1 it tells the very line that is at fault",
            str(error).partition("\n")[0], Path(frame.filename).name, frame.lineno or 0,
        )  # fmt: skip
    for handler in log.handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
