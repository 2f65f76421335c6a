"""Which errors say that a device is lost, and a process that ends whatever it would hang on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.engine.device_lost import ends_on_device_loss, is_device_lost
from sharding.base.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: misaligned address\nCUDA kernel errors might be"), True),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        (RuntimeError("NCCL error in: Utils.cpp:1, unhandled cuda error (run with NCCL_DEBUG=INFO"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"), False),
        (RuntimeError("CUDA error: operation failed due to a previous error during capture"), False),
        (
            RuntimeError("CUDA error: operation would result in a merge of separate capture sequences"),
            False,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), False),
        (RuntimeError("Connection closed by peer"), False),
        (UserError("a CUDA error", "here", "none"), False),
        (ValueError("misaligned address"), False),
    ],
)
def test_which_errors_say_so(error: Exception, lost: bool) -> None:
    assert is_device_lost(error) is lost


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(ValueError, match="mine"), ends_on_device_loss(lambda: pytest.fail("not finished")):
        raise ValueError("mine")


PROGRAM = """
import logging, sys, time
from pretrain.engine import device_lost as lost
lost._TELLING, lost._FINISHING = 1.0, 1.0
logging.basicConfig()
def finish():
    print("finishing", flush=True)
    {finish}
if {log_hangs}:
    logging.getLogger().handlers[0].acquire()
try:
    with lost.ends_on_device_loss(finish):
        raise RuntimeError("CUDA error: device-side assert triggered\\nand more")
finally:
    time.sleep(600)
"""


@pytest.mark.parametrize(("finish", "log_hangs"), [("pass", False), ("time.sleep(600)", True), ("1 / 0", False)])
def test_it_ends_whatever_hangs_or_fails_meanwhile(finish: str, log_hangs: bool) -> None:
    command = [sys.executable, "-c", PROGRAM.format(finish=finish, log_hangs=log_hangs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "finishing\n")
    assert done.stderr.count("the device is lost (CUDA error: device-side assert triggered, in ") == (not log_hangs)
    assert "Traceback" not in done.stderr and "and more" not in done.stderr


RANK = """
import atexit, time
from cluster import cli
atexit.register(time.sleep, 600)
def app(**_):
    raise RuntimeError("of any other kind")
cli.app = app
cli.main()
"""


def test_a_rank_that_fails_does_not_wait_for_its_clean_up() -> None:
    begun = time.monotonic()
    environment = os.environ | {"RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", RANK], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1 and time.monotonic() - begun < 100
    assert "Traceback" in done.stderr and "RuntimeError: of any other kind" in done.stderr
