"""When passes are captured, replayed and thrown away, and what a capture leaves as it was; with a stand-in for it."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.engine.capture import Captured
from pretrain.engine.cuda_graph import GraphedFeatures, enable_cuda_graph
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World
from pretrain.models.compute.batchnorm import LaneBatchNorm, commit_statistics, recompute_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork
from tests.support.training.engine_ranks import lane_clips, network
from tests.support.training.graph_cases import WARM_UPS, StandIn

ALONE = World(0, 1, torch.device("cpu"))
CLIPS = lane_clips(0, 0)[0]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Passes this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def graphed(model: VideoNetwork | None = None) -> tuple[VideoNetwork, GraphedFeatures, StandIn]:
    """A network whose passes are captured by a stand-in."""
    model = network(relu=True) if model is None else model
    capture = StandIn(model)
    features = enable_cuda_graph(model, EngineSettings(), ALONE, capture)
    assert features is not None
    return model.train(), features, capture


def train(model: VideoNetwork, clips: Tensor = CLIPS) -> Tensor:
    """A pass forward and backward; its logits."""
    logits = model(clips)
    logits.square().mean().backward()
    return logits.detach()


def twin(model: VideoNetwork) -> VideoNetwork:
    """The same network without a graph."""
    other = copy.deepcopy(model)
    assert other.graphed_features is None
    for theirs, value in zip(other.parameters(), model.parameters(), strict=True):
        theirs.grad = None if value.grad is None else value.grad.clone()
    return other


def tensors(model: VideoNetwork) -> list[Tensor]:
    """Weights, gradients and buffers."""
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    return [*model.parameters(), *gradients, *model.buffers()]


def logged(run_log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged of graphs; a record may come by two handlers."""
    return [record for record in dict.fromkeys(run_log.records) if "CUDA graph" in record.message]


def norms(model: VideoNetwork) -> list[LaneBatchNorm]:
    return [module for module in model.modules() if isinstance(module, LaneBatchNorm)]


def assert_same(model: VideoNetwork, other: VideoNetwork) -> None:
    """Weights, gradients, buffers and what is pending, to the bit."""
    for (name, value), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(value, theirs), name
        assert (value.grad is None) == (theirs.grad is None), name
        assert value.grad is None or theirs.grad is None or torch.equal(value.grad, theirs.grad), name
    for (name, value), (_, theirs) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(value, theirs), name
    assert [layer.lanes for layer in norms(model)] == [layer.lanes for layer in norms(other)]


def test_the_first_pass_that_trains_is_captured_and_those_after_it_replay() -> None:
    model, features, capture = graphed()
    plain = twin(model)
    assert features.input_buffer is None
    for number in range(3):
        clips = lane_clips(0, number)[0]
        assert torch.equal(train(model, clips), train(plain, clips))
        assert_same(model, plain)
        assert features.input_buffer is not None and torch.equal(features.input_buffer, clips)
    assert capture.replays == [(3, 3)] and norms(model)[0].lanes == 3
    for each in (model, plain):
        commit_statistics(each)
        with torch.no_grad():
            torch._foreach_add_(list(each.parameters()), 0.01)  # in place, as an optimizer does
    assert torch.equal(train(model), train(plain))
    assert_same(model, plain)
    assert capture.replays == [(4, 4)]


def test_a_capture_leaves_everything_as_it_was() -> None:
    model, lanes = network(relu=True).train(), []
    stand_in = StandIn(model)

    def capture(function: Callable[[], Tensor], weights: Sequence[Tensor]) -> Captured:
        captured = stand_in(function, weights)
        lanes.append(norms(model)[0].lanes)
        return captured

    train(model)
    norms(model)[0].pending += 1.0
    norms(model)[0].lanes = 5
    plain = twin(model)
    enable_cuda_graph(model, EngineSettings(), ALONE, capture)
    addresses, draws = [each.data_ptr() for each in tensors(model)], torch.get_rng_state()
    model(CLIPS)
    assert lanes == [5 + WARM_UPS]
    assert torch.equal(torch.get_rng_state(), draws)
    assert [each.data_ptr() for each in tensors(model)] == addresses
    plain(CLIPS)
    assert_same(model, plain)  # the one pass, and nothing else


def test_a_pass_that_does_not_train_computes_without_it_and_leaves_it() -> None:
    model, _, capture = graphed()
    plain = twin(model)
    with torch.no_grad():
        model(CLIPS), plain(CLIPS)
    assert capture.made == []
    train(model), train(plain)
    for each in (model, plain):
        with torch.no_grad():
            each.eval()(CLIPS[:3])
        train(each, CLIPS[:2])  # in evaluation mode, with gradients
        recompute_statistics(each.train(), [CLIPS[:3]], each)
    with_gradient = CLIPS.clone().requires_grad_()
    train(model, with_gradient), train(plain, CLIPS)
    assert with_gradient.grad is not None
    train(model), train(plain)
    assert_same(model, plain)
    assert capture.replays == [(2, 2)]


def rounded(model: VideoNetwork) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        train(model)


def moved(model: VideoNetwork) -> None:
    weight = next(model.layer1.parameters())
    weight.data = weight.data.clone()
    train(model)


def moved_buffer(model: VideoNetwork) -> None:
    norms(model)[1].pending = norms(model)[1].pending.clone()
    train(model)


def without_a_part(model: VideoNetwork) -> None:
    freeze(model, {"stem": 0.0})
    train(model.train())


def without_a_weight(model: VideoNetwork) -> None:
    next(model.layer3.parameters()).requires_grad_(False)
    train(model)


def in_evaluation(model: VideoNetwork) -> None:
    norms(model)[-1].eval()
    train(model)


def by_another_path(model: VideoNetwork) -> None:
    model.use(COMPUTE_PATHS["plain"])
    train(model)


def recomputing(model: VideoNetwork) -> None:
    model.use(replace(model.compute_path, recomputed=2))
    train(model)


def half_of_them(model: VideoNetwork) -> None:
    train(model, CLIPS[:2])


@pytest.mark.parametrize(
    "change",
    [
        rounded, moved, moved_buffer, without_a_part, without_a_weight, in_evaluation, by_another_path, recomputing,
        half_of_them,
    ],
)  # fmt: skip
def test_a_pass_that_it_does_not_hold_good_for_is_captured_anew(change: Callable[[VideoNetwork], None]) -> None:
    model, features, capture = graphed()
    plain = twin(model)
    for each in (model, plain):
        train(each)
        change(each)
        change(each)
    assert_same(model, plain)
    made = capture.made
    if change is moved or change is moved_buffer:  # twice
        assert capture.replays == [(1, 1)] * 3
    else:
        assert capture.replays == [(1, 1), (2, 2)]
    assert [passes.released for passes in made] == [True] * (len(made) - 1) + [False]
    features.discard()
    assert made[-1].released and features.input_buffer is None


def test_weights_pointed_anew_to_where_they_lie_and_weights_loaded_keep_it() -> None:
    model, _, capture = graphed()
    plain = twin(model)
    other = network(relu=True, seed=5).state_dict()
    for each in (model, plain):
        train(each)
        for weight in each.parameters():
            weight.data = weight.data.view(-1).view(weight.shape)  # as ZeRO 1 and 2 do after a step
        train(each)
        each.load_state_dict(other)
        train(each)
    assert_same(model, plain)
    assert capture.replays == [(3, 3)]


def test_no_cast_of_a_weight_is_kept_from_one_pass_to_the_next() -> None:
    model, _, capture = graphed()
    kept, halves = [], []
    model.layer1.register_forward_pre_hook(lambda *_: kept.append(torch.is_autocast_cache_enabled()))
    model.layer2.register_forward_pre_hook(lambda _, inputs: halves.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        train(model)
        assert torch.is_autocast_cache_enabled()
    assert kept == [False] * (WARM_UPS + 1) and set(halves) == {torch.bfloat16}
    assert capture.replays == [(1, 1)]


def test_gradients_are_handed_out_in_memory_of_their_own() -> None:
    model, _, capture = graphed()
    train(model)
    static = {each.untyped_storage().data_ptr() for each in capture.made[0].gradients if each is not None}
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.stride() == value.stride()
        assert value.grad.untyped_storage().data_ptr() not in static, name
        assert value.grad.storage_offset() == 0, name


def test_features_outlive_the_next_pass() -> None:
    model, features, _ = graphed()
    with torch.no_grad():
        expected = twin(model).features_by_compute_path(CLIPS)
    first = features(CLIPS)
    first.sum().backward()
    features(CLIPS + 1).sum().backward()
    assert torch.equal(first, expected)


def test_a_pass_goes_backward_once_and_before_the_next_goes_forward() -> None:
    model, _, _ = graphed()
    first = model(CLIPS).sum()
    second = model(CLIPS).sum()
    with pytest.raises(RuntimeError, match="backward once, and before the next"):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once, and before the next"):
        second.backward()


def test_a_network_of_which_only_the_classifier_learns() -> None:
    model = network(relu=True)
    freeze(model, {"stem": 0.0, "stages": 0.0})
    model, _, capture = graphed(model)
    plain = twin(model)
    for _ in range(2):
        assert torch.equal(train(model), train(plain))
    assert_same(model, plain)
    assert capture.replays == [(2, 0)]
    assert model.fc.weight.grad is not None and all(each is None for each in capture.made[0].gradients)


class Copies(TorchDispatchMode):
    """Counts the copies into tensors of a shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.copy_.default and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_clips_that_lie_in_the_buffer_are_not_copied() -> None:
    model, features, _ = graphed()
    model.use(COMPUTE_PATHS["plain"])
    train(model)
    plain, buffer = twin(model), features.input_buffer
    assert buffer is not None
    buffer.copy_(CLIPS + 1)
    counts = []
    for clips in (buffer, CLIPS + 1, buffer.flip(-1).flip(-1)):
        with Copies(CLIPS.shape) as copies:
            train(model, clips)
        train(plain, CLIPS + 1)
        counts.append(copies.count)
    assert counts == [0, 1, 1]
    assert_same(model, plain)


def test_copies_of_the_network_have_no_graph() -> None:
    model, features, _ = graphed()
    assert model.graphed_features is features
    assert copy.deepcopy(model).graphed_features is None and pickle.loads(pickle.dumps(model)).graphed_features is None
    assert "graphed_features" not in model.state_dict() and model.graphed_features is features
