"""The benchmarks compare what they say: the same function on both sides, every contender timed."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pretrain.models.zoo import ModelSettings, build_model
from tests.benchmarks.models import Case, compare, plain_network, table


@pytest.mark.parametrize("settings", [{"depth": 10, "width": 0.125}, {"depth": 50, "width": 0.0625}])
def test_the_plain_network_is_ours_without_our_classes(settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    ours = build_model(ModelSettings.model_validate(settings), 400, 8).double()
    plain = plain_network(ours, ModelSettings.model_validate(settings))
    clips = torch.randn(2, 3, 8, 16, 16, dtype=torch.float64)
    assert_close(plain(clips), ours(clips), rtol=1e-9, atol=1e-9)
    assert all(type(module).__module__.startswith(("torch.", "tests.")) for module in plain.modules())


def test_every_contender_of_a_case_is_timed() -> None:
    case = Case(ModelSettings(depth=10, width=0.125), 8, 16, 2, half=True, threads=1)
    result = compare(case, torch.device("cpu"), rounds=1, compiling=False)
    assert set(result["rows"]) == {
        "plain conv3d", "plain channels last", "ours, plain", "ours, channels-last", "ours, planar"
    }  # fmt: skip
    assert result["chosen"] in result["rows"]
    assert all(row["clips_per_second"] > 0 and row["mfu"] > 0 for row in result["rows"].values())
    assert all(name in table(result) for name in result["rows"])
