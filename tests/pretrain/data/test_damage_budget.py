"""Damaged samples as they are counted: each once, by what is wrong, also where a worker process met them."""

from __future__ import annotations

import pickle

import pytest
from prometheus_client import REGISTRY

from pretrain.data.damage_budget import DamageBudget
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
