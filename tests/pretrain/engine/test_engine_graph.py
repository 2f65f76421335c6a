"""Engines whose passes are captured train as engines whose passes are not, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pretrain.engine.test_engine import differing
from tests.support.training.graph_cases import CASES, run_cases

pytestmark = pytest.mark.slow

EAGER = ("zero3", "together", "not-asked-for", "one-fails")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return run_cases(tmp_path_factory.mktemp("graph"), list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_a_captured_run_is_the_same_to_the_bit(runs: dict[str, dict[str, Any]], name: str) -> None:
    """Over steps, a validation, a step left out, precise statistics, a roll-back and a layer that is frozen."""
    eager, graphed = runs[name]["eager"], runs[name]["graphed"]
    assert_same_run(eager, graphed)
    skipped = graphed["skipped"]
    assert skipped[3] and not all(skipped)
    assert len(differing(graphed["states"][-2], graphed["states"][-1])) > 50  # it still learns


def assert_same_run(eager: dict[str, Any], graphed: dict[str, Any]) -> None:
    assert eager["skipped"] == graphed["skipped"] and eager["norms"] == graphed["norms"]
    for logits, others in zip(eager["logits"], graphed["logits"], strict=True):
        torch.testing.assert_close(logits, others, rtol=0, atol=0, equal_nan=True)
    for state, other in zip(eager["states"], graphed["states"], strict=True):
        assert differing(state, other) == []


@pytest.mark.parametrize("name", CASES)
def test_it_is_captured_once_and_once_more_when_a_layer_is_frozen(runs: dict[str, dict[str, Any]], name: str) -> None:
    graphed, size = runs[name]["graphed"], CASES[name].get("size", 1)
    assert graphed["buffer"] == (name not in EAGER)
    if name == "one-fails":
        assert graphed["replays"] == [(0, 0)]  # rank 0 could, and goes without as the other rank does
    elif name in EAGER:
        assert graphed["replays"] == []
    else:
        before = (6 if size == 1 else 5) * graphed["passes"]
        assert graphed["replays"] == [(before, before), (graphed["passes"], graphed["passes"])]
