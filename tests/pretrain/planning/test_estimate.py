"""A run's estimate: what bounds a step, what interruptions cost, and what is worth its price."""

from __future__ import annotations

import math

import pytest

from pretrain.planning.advice import advice, purchases
from pretrain.planning.estimate import (
    ALL_STORE,
    DECODING,
    GPU,
    NODE_STORE,
    REQUESTS,
    SHARD,
    WRITING,
    Cluster,
    estimate,
    gpu_hours,
)
from tests.pretrain.planning.conftest import LOAD, ON, load_of, on_a


def test_a_step_by_hand() -> None:
    result = estimate(LOAD, ON)
    exchange = 2 * (7 / 8 * 0.256 / 450 + 7 / 8 * 0.256 / 50)
    assert result.compute == pytest.approx(32 / 300) and result.exchange == pytest.approx(exchange)
    assert result.step == pytest.approx(32 / 300 + exchange) and result.binds == GPU
    assert result.by == "ring" and result.exposed == result.exchange
    assert result.total == pytest.approx(10_000 * result.step + 2 * 5000 / (3 * 300 * 64) + 10 * 0.05 + 70, rel=1e-4)
    assert gpu_hours(result, ON) == pytest.approx(result.total / 3600 * 64)


def test_the_exchange_hides_behind_the_backward_pass() -> None:
    hidden = estimate(LOAD, on_a(overlap=1.0))
    assert hidden.exposed == 0 and hidden.step == hidden.compute
    slow = estimate(LOAD, on_a(overlap=1.0, network=1e9))
    assert slow.exposed == pytest.approx(slow.exchange - 2 / 3 * slow.compute)


def test_a_tree_is_taken_where_it_may_and_is_faster() -> None:
    far = {"nodes": 64, "gpus_per_node": 1, "latency": 1e-3}
    assert estimate(load_of(zero=0), on_a(**far)).by == "tree"
    assert estimate(load_of(zero=1), on_a(**far)).by == "ring"
    assert estimate(load_of(zero=0), on_a(**far, exchange="ring")).by == "ring"
    assert estimate(load_of(lanes=1), on_a(nodes=1, gpus_per_node=1)).by == "none"


def test_more_lanes_a_rank_take_as_many_micro_steps() -> None:
    few, many = (estimate(load_of(lanes=lanes, zero=2), ON) for lanes in (64, 192))
    assert many.compute == pytest.approx(3 * few.compute)
    assert many.exchange == pytest.approx(2 * few.exchange)  # gradients three times, weights once


@pytest.mark.parametrize(
    ("binds", "on", "load", "step"),
    [
        (DECODING, on_a(cores=8), LOAD, 256 / (8 * 150)),
        (NODE_STORE, on_a(store=10e6), LOAD, 256 * 28_800 / 10e6),
        (ALL_STORE, on_a(store_total=50e6), LOAD, 2048 * 28_800 / 50e6),
        (REQUESTS, on_a(requests=5500.0), LOAD, 2048 / 5500),
        (SHARD, on_a(shard=1e6), LOAD, 32 * 28_800 / 1e6),
        (WRITING, ON, load_of(checkpoint_every=1), 0.512),
    ],
)
def test_what_binds(binds: str, on: Cluster, load: object, step: float) -> None:
    result = estimate(load, on)  # type: ignore[arg-type]
    assert result.binds == binds and result.step == pytest.approx(step)
    assert set(result.limits) == {GPU, DECODING, NODE_STORE, ALL_STORE, REQUESTS, SHARD, WRITING}


def test_interruptions_cost_what_is_done_anew() -> None:
    """To first order: each costs what passes until the run is under way again, and half an interval."""
    result = estimate(LOAD, on_a(per_gpu_day=1 / 64))
    work = LOAD.steps * (result.step + result.validation)
    cost = 35 + 60 + 70 + 1000 * result.step / 2
    assert result.interruptions == pytest.approx(work / 86_400, rel=0.02)
    assert result.total - estimate(LOAD, ON).total == pytest.approx(result.interruptions * cost, rel=0.02)
    assert result.at_best < result.total


def test_a_run_that_interruptions_undo_says_how_often_to_save() -> None:
    on = on_a(per_gpu_day=10_000.0)
    load = load_of(checkpoint_every=10_000)
    result = estimate(load, on)
    assert math.isinf(result.total)
    assert "checkpoint.every_steps" in advice(load, on, result, purchases(load, on, result))


def test_checkpoints_come_first_where_interruptions_take_more_than_any_purchase_saves() -> None:
    on = on_a(per_gpu_day=20.0)  # one in 68 s
    result = estimate(load_of(checkpoint_every=1000), on)
    said = advice(LOAD, on, result, purchases(LOAD, on, result))
    assert 1 - result.at_best / result.total > 0.5
    assert said.startswith(f"nothing before this: save every {result.best_steps:,} steps instead of 1,000")
    often = load_of(checkpoint_every=result.best_steps)
    now = estimate(often, on)
    assert now.total == pytest.approx(result.at_best, rel=0.01)
    assert "checkpoint.every_steps" not in advice(often, on, now, purchases(often, on, now))


@pytest.mark.parametrize(
    ("on", "bought", "words"),
    [
        (on_a(cores=8), "CPU cores a node", "CPU cores"),
        (on_a(network=1e9), "network between nodes", "network between nodes"),
        (on_a(requests=5500.0, store=100e9), "the store's requests", "data.reading.mode=parts"),
        (on_a(requests=5500.0, store=0.1e9), "the store's requests", "requests a second"),
        (on_a(store=10e6), "a node's reading from the store", "data.reading.folder"),
        (on_a(shard=1e6), "reading of one shard", "smaller shards"),
    ],
)
def test_what_to_buy_first(on: Cluster, bought: str, words: str) -> None:
    now = estimate(LOAD, on)
    rows = purchases(LOAD, on, now)
    best = next(row for row in rows if row.what != "nodes" and not row.what.startswith("faster GPUs"))
    assert best.what == bought and best.saved > 0.02
    assert words in advice(LOAD, on, now, rows)


def test_where_all_is_in_balance_only_gpus_help() -> None:
    on = on_a(network=1e12, link=1e12)
    now = estimate(LOAD, on)
    rows = purchases(LOAD, on, now)
    assert advice(LOAD, on, now, rows).startswith("nothing but GPUs")
    nodes = rows[-1]
    assert nodes.what == "nodes" and nodes.saved == pytest.approx(0.48, abs=0.02)  # all but the start
    assert nodes.cost == pytest.approx(nodes.gpu_hours * 4.0)
