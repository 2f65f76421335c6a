"""Damaged samples as they are counted: each once, by what is wrong, also where a worker process met them."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from pretrain.data.damage_budget import DamageBudget, allowed_damage
from pretrain.data.reading.damage import DAMAGE_KINDS, DamageKind
from pretrain.data.reading.store_split import DamagedData


def errors(kind: str) -> float:
    value = REGISTRY.get_sample_value("reelscale_decode_errors_total", {"kind": kind})
    assert value is not None, "a kind is served from the beginning"
    return value


def samples() -> float:
    return REGISTRY.get_sample_value("reelscale_damaged_samples_total") or 0.0


@pytest.mark.parametrize("kind", DAMAGE_KINDS)
def test_each_damage_counts_once_by_its_kind(kind: DamageKind) -> None:
    before, lost = {each: errors(each) for each in DAMAGE_KINDS}, samples()
    budget = DamageBudget("store", 1000, 0.5)
    damage = DamagedData(kind, "shard g0-000001", "train/g0-000001-00.tar", "why", samples=7)
    met = pickle.loads(pickle.dumps(damage))  # as it comes from a worker
    assert (met.kind, str(met), met.samples) == (kind, str(damage), 7)
    for _ in range(3):
        budget.add([met])
    assert {each: errors(each) - before[each] for each in DAMAGE_KINDS} == dict.fromkeys(DAMAGE_KINDS, 0) | {kind: 1}
    assert samples() - lost == 7


@given(st.integers(1, 10**5), st.integers(0, 99))
def test_a_share_allows_what_it_says_in_decimal(hundreds: int, more: int) -> None:
    for percent in range(101):
        rate = float(f"{percent // 100}.{percent % 100:02d}")
        for samples in (100 * hundreds, 100 * hundreds + more):  # of the first the share is a whole number
            assert allowed_damage(samples, rate) == samples * percent // 100


def test_a_share_is_not_rounded_down_by_its_binary_number() -> None:
    assert [allowed_damage(100, rate) for rate in (0.0, 0.001, 0.29, 0.57, 0.58, 1.0)] == [0, 1, 29, 57, 58, 100]
    assert [allowed_damage(7, count / 7) for count in range(8)] == list(range(8))
    assert allowed_damage(33.5, 0.1) == 3  # a rank's share of all samples need be no whole number
