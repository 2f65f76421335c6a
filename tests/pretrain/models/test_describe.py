"""What `reelscale models` tells of a network."""

from __future__ import annotations

from pretrain.models.describe import NetworkQuery, describe, describe_all
from pretrain.models.zoo import NAMES


def test_a_network_is_told_with_its_published_counts() -> None:
    told = describe(NetworkQuery(depth=34, frames=32))
    assert told["parameters"] == 63_697_175 and told["gmacs"] == 152.36
    assert round(told["conv_fc_parameters"] / 1e6, 2) == 63.65
    assert round(told["macs"] / 1e9, 2) == told["gmacs"]


def test_all_are_told_and_those_that_cannot_say_why() -> None:
    rows = describe_all({"depth": 18, "frames": 8, "classes": 7})
    assert [row["name"] for row in rows] == list(NAMES)
    assert {row["depth"] for row in rows if row["name"] not in ("i3d", "c3d")} == {18}
    (refused,) = [row for row in rows if "refused" in row]
    assert refused["name"] == "c3d" and "8 frames" in refused["refused"]
    assert all("parameters" in row for row in rows if row is not refused)
