"""The plan's arithmetic, by hand: computing, exchange, reading, faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.planning.all_reduce import Network, exposed_seconds, halves, ring_half, ring_seconds, tree_seconds
from pretrain.planning.compute import clips_per_second, compute_seconds, flops_per_clip, slowest_of
from pretrain.planning.faults import best_interval, expected_failures, expected_seconds, mean_time_between
from pretrain.planning.reading import clip_bytes, decoding_cores, hottest_shard_clips


def test_computing() -> None:
    assert flops_per_clip(76.2e9) == pytest.approx(457.2e9)
    assert clips_per_second(989.5e12, 0.5, 76.2e9) == pytest.approx(1082, rel=1e-3)
    assert compute_seconds(32, 320, 0.8) == pytest.approx(0.125)


@pytest.mark.parametrize("ranks", [2, 64, 1024])
def test_the_slowest_of_many_is_as_late_as_draws_say(ranks: int) -> None:
    drawn = np.random.default_rng(0).normal(1, 0.05, (4_000, ranks)).max(1).mean()
    assert slowest_of(ranks, 0.05) == pytest.approx(drawn, rel=2e-3)
    assert slowest_of(ranks, 0.0) == 1 == slowest_of(1, 0.05)


def test_exchange_by_hand() -> None:
    net = Network(nodes=4, gpus_per_node=2, link=100e9, network=10e9, latency=1e-3)
    assert ring_half(1e9, net) == pytest.approx(0.5 * 1e9 / 100e9 + 0.75 * 1e9 / 10e9 + 3e-3)
    assert ring_seconds(1e9, net) == pytest.approx(2 * 0.083)
    assert tree_seconds(1e9, net) == pytest.approx(0.01 + 0.2 + 4e-3)
    alone = Network(nodes=1, gpus_per_node=1, link=1, network=1, latency=1)
    assert ring_seconds(1e9, alone) == tree_seconds(1e9, alone) == 0


def test_a_tree_is_faster_where_messages_are_many_and_short() -> None:
    net = Network(nodes=128, gpus_per_node=8, link=450e9, network=50e9, latency=1e-4)
    assert tree_seconds(1e6, net) < ring_seconds(1e6, net)
    assert tree_seconds(200e9, net) > ring_seconds(200e9, net)


def test_zero_stages_take_their_halves() -> None:
    assert [halves(stage, 3) for stage in range(4)] == [(2, 0), (1, 1), (3, 1), (3, 6)]


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1))
def test_what_overlaps_is_hidden_at_most_behind_the_backward_pass(exchange: float, back: float, share: float) -> None:
    exposed = exposed_seconds(exchange, back, share)
    assert 0 <= exposed <= exchange and exchange - exposed <= back + 1e-9
    assert exposed_seconds(exchange, back, 0) == exchange


def test_reading_by_hand() -> None:
    assert clip_bytes(32, 600, 9_000) == 48 * 600 and clip_bytes(32, 600, 20) == 20 * 600
    assert decoding_cores(112, 8, None) == 112 and decoding_cores(256, 8, None) == 128
    assert decoding_cores(256, 8, 20) == 160 and decoding_cores(16, 8, 20) == 16 and decoding_cores(4, 8, None) == 4
    assert hottest_shard_clips(64, 32, 4, 1e9, 256e6) == 512


@pytest.mark.parametrize("lanes", [2, 64, 1024])
def test_the_hottest_shard_is_that_of_the_lane_that_draws_it_most(lanes: int) -> None:
    drawn = np.random.default_rng(0).multinomial(32, [0.25] * 4, (2_000, lanes)).max((1, 2)).mean()
    assert hottest_shard_clips(lanes, 32, 10_000, 64e6, 256e6) == pytest.approx(drawn, abs=1)


def test_interruptions_of_llama_3() -> None:
    rate = 419 / (54 * 16_384)
    assert mean_time_between(16_384, rate, 2048, 0) == pytest.approx(54 / 419 * 86_400)
    assert 28 < mean_time_between(64, rate, 8, 0) / 86_400 < 35  # about a month
    assert mean_time_between(1024, rate, 128, 0) / 86_400 == pytest.approx(2, abs=0.1)
    assert mean_time_between(64, 0, 8, 0) == math.inf
    assert mean_time_between(64, 0, 8, 0.5) == 86_400 / 4


def test_the_best_interval_is_the_best() -> None:
    """Young's formula to a few percent, and no other interval loses less time."""
    pause, between = 30.0, 20_000.0
    best = best_interval(pause, between)
    assert best == pytest.approx(math.sqrt(2 * pause * between), rel=0.05)

    def lost(interval: float) -> float:
        return expected_seconds(1000 * interval, interval, pause, between, 200.0)[0] / (1000 * interval)

    assert lost(best) < min(lost(0.8 * best), lost(1.25 * best))
    assert best_interval(1.0, math.inf) == math.inf


def test_a_run_without_interruptions_takes_its_work_and_its_pauses() -> None:
    assert expected_seconds(1050, 100, 2, math.inf, 60) == (1070, 0)
    total, failures = expected_seconds(1050, 100, 2, 1e12, 60)
    assert total == pytest.approx(1070, rel=1e-6) and failures == pytest.approx(1070 / 1e12)


def test_a_run_that_never_ends_is_said_to() -> None:
    assert expected_failures(1e6, 1.0) == math.inf
    assert expected_seconds(1e6, 1e6, 1, 1.0, 60) == (math.inf, math.inf)
