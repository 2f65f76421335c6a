"""A step judged on the device: taken, clipped or left out by torch's fused optimizers as by the plain ones."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.engine.distributed import World
from pretrain.engine.step_verdict import Judge, adamw, gradients_of, sgd
from tests.support.commands import ROOT

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
SIZES = [(8, 3, 1, 2), (5,), (1001,)]
PLAIN = {
    "sgd": lambda groups: sgd(groups, CPU, 0.9, True),
    "momentum-less": lambda groups: sgd(groups, CPU, 0.0, True),
    "adamw": lambda groups: adamw(groups, CPU, (0.9, 0.99), 1e-8),
}
FUSED = {  # what a GPU is given
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, fused=True),
    "momentum-less": lambda groups: torch.optim.SGD(groups, lr=1.0, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), fused=True),
}


def weights() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=draw).requires_grad_() for size in SIZES]


def tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of the weights and of all that is kept of them."""
    found = [weight for group in optimizer.param_groups for weight in group["params"]]
    found += [value for weight in found for value in optimizer.state[weight].values() if value is not None]
    return [value.detach().clone() for value in found]


def taken(optimizer: torch.optim.Optimizer, judge: Judge, step: int, factor: float = 1.0) -> tuple[float, float]:
    """One step by gradients drawn for it; the verdict."""
    draw = torch.Generator().manual_seed(step)
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in trained:
        weight.grad = torch.randn(weight.shape, generator=draw) * factor
    judge.judge(gradients_of(trained))
    optimizer.step()
    finite, norm = judge.verdict.tolist()
    return finite, norm


@pytest.mark.parametrize("kinds", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_that_is_not_finite_leaves_all_as_it_was(kinds: dict[str, Any], kind: str, clip: float) -> None:
    groups = [{"params": weights(), "weight_decay": 0.1}]
    optimizer = kinds[kind](groups)
    optimizer.param_groups[0]["lr"] = 0.01
    judge = Judge(optimizer, 0, ALONE, clip, lambda: 1.0)
    assert judge.verdict[0] == 1 and judge.verdict[1].isnan()
    finite, norm = taken(optimizer, judge, 1)
    assert finite == 1 and norm == pytest.approx(math.sqrt(sum(map(math.prod, SIZES))), rel=0.2)
    for factor in (math.nan, math.inf, 1e38):  # the last one's norm is no fp32 number
        before = tensors(optimizer)
        assert taken(optimizer, judge, 2, factor) == (0.0, math.inf)
        assert len(before) == len(tensors(optimizer))
        assert all(torch.equal(one, other) for one, other in zip(before, tensors(optimizer), strict=True))
    assert taken(optimizer, judge, 3)[0] == 1
    assert not any(torch.equal(one, other) for one, other in zip(before, tensors(optimizer), strict=True))


@pytest.mark.parametrize("kinds", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (0.5, 1.0), (1e6, 1.0), (0.0, 4.0), (0.5, 4.0)])
def test_gradients_are_clipped_and_scaled_back(kinds: dict[str, Any], kind: str, clip: float, scale: float) -> None:
    """As torch does it, by hand."""
    ours, theirs = weights(), weights()
    optimizer = kinds[kind]([{"params": ours, "weight_decay": 0.1, "lr": 0.01}])
    reference = FUSED[kind]([{"params": theirs, "weight_decay": 0.1, "lr": 0.01}])
    judge = Judge(optimizer, 0, ALONE, clip, lambda: scale)
    for step in range(3):
        _, norm = taken(optimizer, judge, step, scale)
        draw = torch.Generator().manual_seed(step)
        for weight in theirs:
            weight.grad = torch.randn(weight.shape, generator=draw)
        expected = torch.nn.utils.clip_grad_norm_(theirs, clip or math.inf)
        reference.step()
        assert norm == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_gradient_lies_in_memory_as_its_weight() -> None:
    """The fused optimizers go through both in the order of memory."""
    weight, same, without = (torch.zeros(4, 3, 1, 5).requires_grad_() for _ in range(3))
    values = torch.randn(4, 5, 1, 3)
    weight.grad = values.permute(0, 3, 2, 1)
    same.grad = torch.ones(60).as_strided((4, 3, 1, 5), (15, 5, 99, 1))  # a side of one has no order
    kept = same.grad
    first, second = gradients_of([weight, same, without])
    assert torch.equal(first, values.permute(0, 3, 2, 1)) and first.is_contiguous() and weight.grad is first
    assert second is kept


def test_optimizers_for_a_cpu_round_alike_wherever_a_number_lies() -> None:
    """However ZeRO shares weights out; torch's fused ones do not."""
    whole = torch.randn(1001, generator=torch.Generator().manual_seed(4))
    apart = {}
    for cut in (0, 3, 17):
        parts = [part.clone().requires_grad_() for part in whole.split([cut, 1001 - cut])]
        optimizer = PLAIN["sgd"]([{"params": parts, "weight_decay": 0.01, "lr": 0.01}])
        judge = Judge(optimizer, 0, ALONE, 0.0, lambda: 1.0)
        for step in range(20):
            drawn = torch.randn(1001, generator=torch.Generator().manual_seed(step))
            for part, gradient in zip(parts, drawn.split([cut, 1001 - cut]), strict=True):
                part.grad = gradient.clone()
            judge.judge(gradients_of(parts))
            optimizer.step()
        apart[cut] = torch.cat([copy.deepcopy(part.detach()) for part in parts])
    assert torch.equal(apart[0], apart[3]) and torch.equal(apart[0], apart[17])


def test_a_step_on_a_cpu_loads_no_compiler() -> None:
    """It would take seconds of every rank's start; DeepSpeed's Muon, of which ZeRO asks, has kernels to compile."""
    code = """
import sys
import torch
from pretrain.engine.deepspeed_import import import_deepspeed
from pretrain.engine.step_verdict import sgd
import_deepspeed(torch.device("cpu"))
weight = torch.nn.Parameter(torch.ones(2))
optimizer = sgd([{"params": [weight]}], torch.device("cpu"), 0.9, False)
weight.grad = torch.ones(2)
optimizer.found_inf = torch.tensor(0.0)
optimizer.step()
optimizer.zero_grad()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
print(weight.tolist(), sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[0.0, 0.0] []\n"
