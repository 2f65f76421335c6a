"""Whole tiny runs by every compute path that a run may take follow the plain one's, step by step, on the same clips."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.pretrain.conftest import end, start, write_recipe
from tests.support.gpu import needs_gpu

BATCH, STEPS, EPOCH_STEPS = 8, 12, 4
CLIP = {"frames": 8, "stride": 1, "resize": [36, 44], "crop": 32}  # the last layers still normalise 32 values
WHOLE = json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}})  # tiny weights are shared out, too
KERNELS = "rows"  # the compute path with all that a GPU alone has
ON_GPU = {
    **{f"ZeRO {zero}": (KERNELS, "bf16", zero) for zero in range(4)},
    "fp16": (KERNELS, "fp16", 1),
    "fp32": (KERNELS, "fp32", 1),
    "resumed": (KERNELS, "bf16", 1),
}
Steps = list[dict[str, Any]]


@pytest.fixture(scope="module")
def on_gpu(store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Steps]:
    """All runs on the GPU, by name; `resumed` is one of the kernels' in bf16."""
    runs = {f"plain {precision}": by("plain", precision) for precision in ("fp32", "bf16", "fp16")}
    runs |= {name: by(compute_path, precision, zero) for name, (compute_path, precision, zero) in ON_GPU.items()}
    return all_trained(store, tmp_path_factory.mktemp("on-gpu"), runs | {"default": ()}, gpu=True)


def recipe_of(folder: Path, store: str) -> Path:
    """A run with the defaults of everything that computes: compute path, precision, ZeRO."""
    return write_recipe(
        folder,
        store,
        lanes=1,
        lane_batch=BATCH,
        data={"store": store, "clip": CLIP, "loader": {"workers": 1}},
        model={"depth": 10, "width": 0.125},
        schedule={"lr": 0.001, "epoch_clips": BATCH * EPOCH_STEPS, "epochs": STEPS // EPOCH_STEPS, "warmup_epochs": 0,
                  "decay": "constant"},
        engine={},
    )  # fmt: skip


def trained(recipe: Path, folder: Path, name: str, overrides: tuple[str, ...], gpu: bool) -> Steps:
    """The steps that a run tells of, in order. One called `resumed` ends after 4 and is started again."""
    run, log = folder / name, folder / f"{name}.log"
    for more in (("schedule.epochs=1",), ()) if name == "resumed" else ((),):
        assert end(start(recipe, run, log, *overrides, *more, alone=True, gpu=gpu)) == 0, log.read_text()
    if name == "resumed":
        assert f"going on from the checkpoint at step {EPOCH_STEPS} of {STEPS}" in log.read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1)), log.read_text()
    return steps


def all_trained(store: str, folder: Path, runs: Mapping[str, tuple[str, ...]], gpu: bool) -> dict[str, Steps]:
    """All runs by name, some at a time: on a GPU a start is most of what a tiny one takes."""
    recipe = recipe_of(folder, store)
    with ThreadPoolExecutor(4 if gpu else 2) as threads:
        return dict(
            zip(runs, threads.map(lambda name: trained(recipe, folder, name, runs[name], gpu), runs), strict=True)
        )


def by(compute_path: str, precision: str, zero: int = 1) -> tuple[str, ...]:
    """Overrides of a run; the compute path is the run's choice where it is `auto`."""
    more = (f"engine.deepspeed={WHOLE}",) if zero == 3 else ()
    return f"engine.compute_path={compute_path}", f"engine.precision={precision}", f"engine.zero={zero}", *more


def off(steps: Steps, exact: Steps, key: str) -> float:
    """How far a figure is from the exact run's, relative, as the root of the mean square over the steps."""
    pairs = [(mine[key] or math.inf, theirs[key]) for mine, theirs in zip(steps, exact, strict=True)]
    return math.sqrt(sum((mine / theirs - 1) ** 2 for mine, theirs in pairs) / len(pairs))


def assert_follows(steps: Steps, exact: Steps, peer: Steps) -> None:
    """A run is no further off the plain compute path's in fp32 than three times as far as that is by rounding alone.

    `peer`: that compute path in the run's own precision (fp32 on a GPU is computed in TF32, which rounds as fp16 does).
    Two compute paths round in other places, so they are off by as much, but not alike: of 12 steps hardly by thrice as
    much. That other clips' losses are much further off shows that the bound would tell.
    """
    assert [step["skipped"] for step in steps] == [0] * STEPS
    for key in ("loss", "grad_norm"):
        bound = 3 * off(peer, exact, key)
        assert bound > 0 and off(steps, exact, key) < bound, (key, bound, [step[key] for step in steps])
    assert off([*steps[1:], steps[0]], exact, "loss") > 3 * off(peer, exact, "loss")


@pytest.mark.slow
def test_a_run_follows_the_plain_paths_losses(store: str, tmp_path: Path) -> None:
    """The small form, on a CPU."""
    names = "plain fp32", "plain bf16", "channels-last bf16", "rows bf16"
    found = all_trained(store, tmp_path, {name: by(*name.split()) for name in names}, gpu=False)
    for name in names[2:]:
        assert_follows(found[name], found["plain fp32"], found["plain bf16"])


@needs_gpu("test_a_run_follows_the_plain_paths_losses")
@pytest.mark.parametrize("name", [*ON_GPU, "default"])
def test_on_a_gpu_a_run_follows_the_plain_paths_losses(name: str, on_gpu: dict[str, Steps]) -> None:
    """By the kernels at each ZeRO stage and precision, also when it goes on; and with nothing but defaults."""
    precision = ON_GPU[name][1] if name in ON_GPU else "bf16"
    peer = "plain fp16" if precision == "fp32" else f"plain {precision}"
    assert_follows(on_gpu[name], on_gpu["plain fp32"], on_gpu[peer])
