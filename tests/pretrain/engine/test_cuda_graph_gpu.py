"""CUDA graphs themselves: passes that are replayed are those that are not, to the bit; needs a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pretrain.engine.capture import CudaGraphs
from pretrain.engine.cuda_graph import enable_cuda_graph
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World
from pretrain.models.compute.batchnorm import commit_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.network import VideoNetwork
from tests.pretrain.engine.test_engine_graph import assert_same_run
from tests.support.training.engine_ranks import lane_clips, network
from tests.support.training.graph_cases import run_cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
STEPS, LANES = 4, 2


@pytest.fixture(autouse=True)
def same_bits() -> Iterator[None]:
    """Kernels that add up in the same order each time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def train(model: VideoNetwork, half: torch.dtype | None) -> list[Tensor]:
    """A few steps of two lanes, a validation among them; the logits."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    logits: list[Tensor] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for lane in range(LANES):
            video, labels = (each.cuda() for each in lane_clips(step, lane))
            with torch.autocast("cuda", half, enabled=half is not None):
                logits.append(model.train()(video).float())
            functional.cross_entropy(logits[-1], labels).backward()
        optimizer.step()
        commit_statistics(model)
        with torch.no_grad():
            logits.append(model.eval()(lane_clips(9, step)[0][:3].cuda()))
    return logits


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_a_network_trains_as_without_a_graph(half: torch.dtype | None, recomputed: int) -> None:
    world = World(0, 1, torch.device("cuda", torch.cuda.current_device()))
    plain = network(relu=True).cuda()
    plain.use(replace(COMPUTE_PATHS["channels-last"], recomputed=recomputed))
    model = copy.deepcopy(plain)
    features = enable_cuda_graph(model, EngineSettings(), world, CudaGraphs)
    draws = torch.cuda.get_rng_state()
    for logits, others in zip(train(model, half), train(plain, half), strict=True):
        assert torch.equal(logits, others)
    assert features is not None and features.input_buffer is not None  # it was captured
    assert torch.equal(torch.cuda.get_rng_state(), draws)
    for (name, value), (_, other) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(value, other), name
    held = torch.cuda.memory_allocated()
    features.discard()
    assert torch.cuda.memory_allocated() < held


def test_what_cannot_be_captured_leaves_the_device_as_it_was() -> None:
    """A value asked for by the host breaks a capture; what follows allocates, draws, and is captured as ever."""
    weight = torch.ones(8, device="cuda", requires_grad=True)
    stream = torch.cuda.current_stream()
    asked = 0

    def function() -> Tensor:
        nonlocal asked
        asked += 1
        return weight * (float(weight.detach().sum()) if asked > 3 else 8.0)

    with pytest.raises(RuntimeError):
        CudaGraphs(function, [weight])
    assert torch.cuda.current_stream() == stream and not torch.cuda.is_current_stream_capturing()
    assert torch.rand(4, device="cuda").isfinite().all()
    torch.cuda.empty_cache()  # it asserts that no capture is underway
    graphs = CudaGraphs(lambda: weight * 3, [weight])
    with torch.no_grad():
        weight.fill_(2.0)
    graphs.forward()
    graphs.backward(torch.ones_like(graphs.output))
    assert graphs.output.tolist() == [6.0] * 8 and graphs.gradients[0] is not None
    assert graphs.gradients[0].tolist() == [3.0] * 8


def test_an_engine_trains_as_without_a_graph(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By DeepSpeed, over all that `graph_cases` has between two passes."""
    for name, runs in run_cases(tmp_path_factory.mktemp("graph"), ["lanes2-zero1", "bf16", "zero3"], gpu=True).items():
        assert_same_run(runs["eager"], runs["graphed"])
        assert runs["graphed"]["buffer"] == (name != "zero3")
