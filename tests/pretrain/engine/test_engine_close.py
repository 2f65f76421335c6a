"""An engine that is closed lets go of its network, so that another has its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PROGRAM = """
import gc, sys, weakref
import torch
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.engine import Engine
from pretrain.engine.distributed import leave_world, start_world
from pretrain.models.zoo import ModelSettings, build_model

world = start_world(60.0)
for zero in (0, 1, 2):
    model = build_model(ModelSettings(depth=10, width=0.125), 3, 4)
    engine = Engine(model, EngineSettings(precision="fp32", zero=zero), world, 1, 2)
    engine.backward(engine.forward(torch.randn(2, 3, 4, 16, 16)).square().mean())
    engine.step()
    held = [weakref.ref(engine), weakref.ref(model), weakref.ref(model.fc.weight)]
    engine.close()
    del engine, model
    gc.collect()
    print(zero, [each() is None for each in held], flush=True)
leave_world()
"""


@pytest.fixture(scope="module")
def freed() -> list[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line[:1].isdigit()]


def test_nothing_of_it_is_left(freed: list[str]) -> None:
    assert freed == [f"{zero} [True, True, True]" for zero in (0, 1, 2)]
