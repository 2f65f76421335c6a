"""Lane batch normalisation against torch's own, one lane and many."""

from __future__ import annotations

import copy
import itertools
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pretrain.models.compute.batchnorm import (
    LaneBatchNorm,
    commit_statistics,
    discard_statistics,
    recompute_statistics,
    statistics_held,
    synchronise,
)


def pair(channels: int = 6) -> tuple[LaneBatchNorm, nn.BatchNorm3d]:
    ours, torchs = LaneBatchNorm(channels), nn.BatchNorm3d(channels, eps=1e-3, momentum=0.1)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 1.5)
        ours.bias.normal_()
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def lane(seed: int, channels: int = 6) -> Tensor:
    return torch.randn(3, channels, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * (seed + 1) + seed


def test_one_lane_is_torchs_batch_norm() -> None:
    ours, torchs = pair()
    for seed in range(3):
        x, y = lane(seed).requires_grad_(), lane(seed).requires_grad_()
        left, right = ours(x), torchs(y)
        assert torch.equal(left, right)
        left.square().sum().backward()
        right.square().sum().backward()
        assert torch.equal(x.grad, y.grad)
        commit_statistics(ours)
    assert_close(ours.state_dict(), torchs.state_dict(), rtol=1e-6, atol=1e-6)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert torch.equal(ours.weight.grad, torchs.weight.grad)
    assert_close(ours.eval()(lane(9)), torchs.eval()(lane(9)))


def pictures(x: Tensor) -> Tensor:
    """As a 2D convolution over N·T leaves it."""
    flat = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return flat.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def time(x: Tensor) -> Tensor:
    """As a 2D convolution over T, H·W leaves it."""
    return x.flatten(3).contiguous(memory_format=torch.channels_last).unflatten(3, x.shape[3:])


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


ORDERS = [Tensor.contiguous, channels_last, pictures, time, lambda x: x[:1].expand_as(x)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 4, 2, 5, 5), (2, 4, 1, 5, 5), (2, 4, 2, 1, 1), (1, 4, 3, 4, 4), (2, 1, 2, 3, 3), (3, 4, 1, 1, 1)]
)
def test_gradients_are_those_of_the_formula_in_every_order_of_memory(shape: tuple[int, ...], training: bool) -> None:
    """Where a side is 1 torch's kernel takes some orders of memory for others, and its gradients are wrong."""
    layer, _ = pair(shape[1])
    layer.double().train(training)
    layer.running_mean.normal_()
    for order, order_of_gradients in itertools.product(ORDERS, ORDERS):
        draw = torch.Generator().manual_seed(0)
        x, gradients = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
        x, gradients = order(x), order_of_gradients(gradients)
        left, right = (
            x.detach().requires_grad_(),
            x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(),
        )
        over = (0, 2, 3, 4)
        mean = right.mean(over, keepdim=True) if training else layer.running_mean.view(1, -1, 1, 1, 1)
        variance = right.var(over, False, keepdim=True) if training else layer.running_var.view(1, -1, 1, 1, 1)
        scale, shift = (value.detach().clone().requires_grad_() for value in (layer.weight, layer.bias))
        expected = (right - mean) / (variance + layer.eps).sqrt() * scale.view(1, -1, 1, 1, 1)
        expected = expected + shift.view(1, -1, 1, 1, 1)
        layer.zero_grad()
        result = layer(left)
        result.backward(gradients)
        expected.backward(gradients)
        assert_close(result, expected)
        assert_close(left.grad, right.grad)
        assert_close(layer.weight.grad, scale.grad)
        assert_close(layer.bias.grad, shift.grad)


def test_running_statistics_wait_for_the_commit_and_take_the_mean_over_lanes() -> None:
    ours, _ = pair()
    for seed in range(2):
        assert_close(ours(lane(seed)), pair_output(ours, lane(seed)))
    assert not ours.running_mean.any()
    assert ours.num_batches_tracked.item() == 0
    commit_statistics(ours)
    means = torch.stack([lane(seed).mean((0, 2, 3, 4)) for seed in range(2)]).mean(0)
    variances = torch.stack([lane(seed).var((0, 2, 3, 4)) for seed in range(2)]).mean(0)
    assert_close(ours.running_mean, 0.1 * means)
    assert_close(ours.running_var, 0.9 + 0.1 * variances)
    assert ours.num_batches_tracked.item() == 1
    assert not ours.pending.any()


def pair_output(ours: LaneBatchNorm, x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, None, None, ours.weight, ours.bias, training=True, eps=ours.eps)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_spread_of_lanes_over_ranks_does_not_matter(ranks: int) -> None:
    network = nn.Sequential(LaneBatchNorm(6), nn.Conv3d(6, 4, 1), LaneBatchNorm(4))
    alone, members = copy.deepcopy(network), [copy.deepcopy(network) for _ in range(ranks)]
    for seed in range(4):
        alone(lane(seed))
        members[seed * ranks // 4](lane(seed))
    commit_statistics(alone)
    sent: list[Tensor] = []
    for member in members:  # a first round only to see what each rank would send
        commit_statistics(copy.deepcopy(member), all_reduce=lambda sums: sent.append(sums.clone()))
    assert len(sent) == ranks  # one reduction a rank, whatever the number of layers
    for member in members:
        commit_statistics(member, all_reduce=lambda sums: sums.copy_(torch.stack(sent).sum(0)))
        assert_close(member.state_dict(), alone.state_dict())


def test_a_commit_may_come_before_the_backward_pass() -> None:
    ours, torchs = pair()
    x, y = lane(0).requires_grad_(), lane(0).requires_grad_()
    output = ours(x)
    commit_statistics(ours)
    output.square().sum().backward()
    torchs(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_a_step_that_the_device_finds_unsound_leaves_no_trace() -> None:
    network = nn.Sequential(LaneBatchNorm(6), nn.Conv3d(6, 4, 1), LaneBatchNorm(4, momentum=0.3))
    plain = copy.deepcopy(network)
    network(lane(0))
    commit_statistics(network, finite=torch.tensor(True))
    plain(lane(0))
    commit_statistics(plain)
    before = copy.deepcopy(network.state_dict())
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    network(torch.full((2, 6, 1, 2, 2), float("inf")))
    commit_statistics(network, finite=torch.tensor(False))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network(lane(1))
    commit_statistics(network, finite=torch.tensor(True))
    plain(lane(1))
    commit_statistics(plain)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_a_skipped_step_leaves_no_trace() -> None:
    ours, _ = pair()
    before = copy.deepcopy(ours.state_dict())
    ours(torch.full((2, 6, 1, 2, 2), float("inf")))
    discard_statistics(ours)
    commit_statistics(ours)
    assert_close(ours.state_dict(), before)
    ours(lane(1))
    commit_statistics(ours)
    assert ours.running_mean.isfinite().all()


def test_frozen_layers_stay_as_they_are() -> None:
    network = nn.Sequential(LaneBatchNorm(6), LaneBatchNorm(6))
    network[0].eval()
    network(lane(2))
    commit_statistics(network)
    assert not network[0].running_mean.any()
    assert network[1].running_mean.any()
    assert [layer.num_batches_tracked.item() for layer in network] == [0, 1]


@pytest.mark.parametrize("cast", [True, False], ids=["cast to bfloat16", "autocast"])
def test_statistics_are_float32_in_half_precision(cast: bool) -> None:
    ours, _ = pair()
    with torch.no_grad():
        ours.running_mean.fill_(1.0001)  # not a bfloat16 number
    network = nn.Sequential(nn.Conv3d(6, 6, 1), ours)
    if cast:
        network.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast):
        output = network(lane(1).bfloat16() if cast else lane(1))
        assert output.dtype == torch.bfloat16
        assert ours.pending.dtype == torch.float32
        output.sum().backward()
    assert ours.running_mean.dtype == torch.float32
    assert ours.running_mean[0].item() == pytest.approx(1.0001, abs=1e-7)
    commit_statistics(network)
    assert network.eval()(lane(1).to(output.dtype if cast else torch.float32)).isfinite().all()


@pytest.mark.parametrize("shares", [(3, 3), (1, 5), (2, 2, 2)])
def test_synchronised_ranks_are_one_batch(shares: tuple[int, ...]) -> None:
    whole, members = pair()[0].double(), []
    batch = lane(5).repeat(2, 1, 1, 1, 1).double() + torch.randn(6, 6, 2, 4, 4, generator=torch.Generator()).double()
    slopes = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    barrier, rows = threading.Barrier(len(shares)), [torch.zeros(0)] * len(shares)

    def rank(number: int) -> None:
        def gather(row: Tensor) -> Tensor:
            rows[number] = row
            barrier.wait()
            found = torch.stack(rows)
            barrier.wait()
            return found

        synchronise(members[number], gather)
        output = members[number](parts[number])
        (output * slopes.split(shares)[number]).sum().backward()
        outputs[number] = output.detach()

    members = [copy.deepcopy(whole) for _ in shares]
    parts = [part.clone().requires_grad_() for part in batch.split(shares)]
    outputs = [torch.zeros(0)] * len(shares)
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    batch.requires_grad_()
    expected = whole(batch)
    (expected * slopes).sum().backward()
    exact = {"rtol": 1e-9, "atol": 1e-9}
    assert_close(torch.cat(outputs), expected.detach(), **exact)
    assert_close(torch.cat([part.grad for part in parts]), batch.grad, **exact)
    for name in ("weight", "bias"):
        summed = sum(getattr(member, name).grad for member in members)
        assert_close(summed, getattr(whole, name).grad, **exact)
    sent: list[Tensor] = []
    for member in members:  # a first round only to see what each rank would send
        commit_statistics(copy.deepcopy(member), all_reduce=lambda sums: sent.append(sums.clone()))
    commit_statistics(whole)
    for member in members:
        commit_statistics(member, all_reduce=lambda sums: sums.copy_(torch.stack(sent).sum(0)))
        assert_close(member.state_dict(), whole.state_dict(), **exact)


def test_a_repetition_is_not_counted() -> None:
    ours, _ = pair()
    ours(lane(0))
    seen = ours.pending.clone()
    with statistics_held():
        ours(lane(1))
    assert torch.equal(ours.pending, seen)


def test_padding_channels_stay_zero_and_leave_no_trace() -> None:
    ours, _ = pair()
    padded = copy.deepcopy(ours)
    batch = lane(0)
    wide = torch.nn.functional.pad(batch, (0,) * 6 + (0, 2))
    assert torch.equal(padded(wide, zeros=2)[:, :6], ours(batch))
    assert not padded(wide, zeros=2)[:, 6:].any()
    assert_close(padded.pending, ours.pending * padded.lanes)
    assert torch.equal(padded.eval()(wide, zeros=2)[:, :6], ours.eval()(batch))


@pytest.mark.parametrize("rows", [False, True])
def test_one_value_a_channel_is_no_batch(rows: bool) -> None:
    ours, _ = pair()
    ours.rows = rows
    with pytest.raises(ValueError, match="one value a channel"):
        ours(torch.ones(1, 6, 1, 1, 1))
    synchronise(ours, lambda row: torch.stack([row, row]))
    assert ours(torch.ones(1, 6, 1, 1, 1)).isfinite().all()


class Frozen(LaneBatchNorm):
    """Stays in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


@pytest.mark.parametrize("shares", [[5], [3, 2], [5, 0]])
def test_recomputed_statistics_are_the_mean_over_many_batches(shares: list[int]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(LaneBatchNorm(6), nn.Conv3d(6, 4, 1), nn.Dropout(0.5), LaneBatchNorm(4), Frozen(4))
    batches = [lane(seed) for seed in range(5)]
    hidden = []
    for batch in batches:  # each layer normalises by the batch itself
        first = nn.functional.batch_norm(batch, None, None, training=True, eps=1e-3)
        hidden.append(network[1](first).detach())
    expected = {
        f"{number}.running_{name}": torch.stack([statistic(batch) for batch in given]).mean(0)
        for number, given in ((0, batches), (3, hidden))
        for name, statistic in (
            ("mean", lambda batch: batch.mean((0, 2, 3, 4))),
            ("var", lambda batch: batch.var((0, 2, 3, 4))),
        )
    }
    network.train()(lane(7))
    commit_statistics(network)  # what was there before is gone
    network(lane(8))  # and what is pending does not count
    before, dice = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    starts = [sum(shares[:rank]) for rank in range(len(shares))]
    own = [batches[start : start + share] for start, share in zip(starts, shares, strict=True)]
    members = [copy.deepcopy(network) for _ in shares]
    sent: list[Tensor] = []
    for member, share in zip(members, own, strict=True):
        copied = copy.deepcopy(member)
        recompute_statistics(copied, share, copied, lambda sums: sent.append(sums.clone()))
    for member, share in zip(members, own, strict=True):
        recompute_statistics(member, share, member, lambda sums: sums.copy_(torch.stack(sent).sum(0)))
        found = member.state_dict()
        assert_close({name: found[name] for name in expected}, expected)
        assert all(torch.equal(found[name], before[name]) for name in before if name not in expected)
        assert [module.training for module in member] == [True] * 4 + [False]
        assert not any(layer.lanes or layer.pending.any() for layer in (member[0], member[3]))
    assert torch.equal(torch.get_rng_state(), dice)


def test_no_batch_leaves_the_statistics_as_they_are() -> None:
    ours, _ = pair()
    ours(lane(1))
    commit_statistics(ours)
    before = copy.deepcopy(ours.state_dict())
    recompute_statistics(ours, [], ours)
    assert_close(ours.state_dict(), before, rtol=0, atol=0)
