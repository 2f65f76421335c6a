"""What `reelscale models` tells of networks."""

from __future__ import annotations

import pytest

from pretrain.models.describe import NetworkQuery, describe, describe_networks
from pretrain.models.zoo import NAMES
from sharding.base.errors import UserError


@pytest.mark.slow
def test_a_network_is_told_with_its_published_counts() -> None:
    output = describe(NetworkQuery(depth=34, frames=32))
    assert output["parameters"] == 63_697_175 and output["gmacs"] == 152.36
    assert round(output["conv_fc_parameters"] / 1e6, 2) == 63.65
    assert round(output["macs"] / 1e9, 2) == output["gmacs"]
    assert describe_networks(["name=r2plus1d", "depth=34", "frames=32"]) == output


@pytest.mark.slow
def test_all_are_told_as_they_are_published() -> None:
    rows = {row["name"]: row for row in describe_networks([])["models"]}
    assert list(rows) == list(NAMES)
    assert {name: row["gmacs"] for name, row in rows.items() if name in ("i3d", "c3d")} == {"i3d": 111.15, "c3d": 38.53}
    assert {row["depth"] for row in rows.values()} == {34, 152, None}


@pytest.mark.slow
def test_all_are_told_with_what_is_given_and_those_that_cannot_say_why() -> None:
    rows = describe_networks(["depth=18", "frames=8", "classes=7"])["models"]
    refused = {row["name"]: row["refused"] for row in rows if "refused" in row}
    assert list(refused) == ["p3d", "fused3d", "c3d"]
    assert "bottlenecks" in refused["p3d"] and "a clip has 8" in refused["fused3d"] and "8 frames" in refused["c3d"]
    counted = [row for row in rows if "refused" not in row]
    assert {row["depth"] for row in counted if row["name"] not in ("s3d", "lstm", "i3d")} == {18}
    assert all(row["classes"] == 7 and row["frames"] == 8 for row in counted)


@pytest.mark.slow
def test_a_setting_of_one_network_refuses_the_others_one_by_one() -> None:
    rows = {row["name"]: row for row in describe_networks(["midplanes=block", "depth=18"])["models"]}
    assert rows["r2plus1d"]["parameters"] == 31_505_325
    assert "midplanes=block is for r2plus1d" in rows["r3d"]["refused"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("name=r4d", "'fused3d', 'i3d' or 'c3d'"),
        ("depth=20", "10, 16, 18, 26, 34, 50, 101 or 152"),
        ("frames=0", "greater than or equal to 1"),
        ("frames=-1", "greater than or equal to 1"),
        ("frames=2.5", "integer; it should be greater than or equal to 1"),
        ("frames=1000000000000000000000", "less than or equal to 10000"),
        ("frames=true", "integer; it should be greater than or equal to 1"),
        ("size=1000000000", "less than or equal to 4096"),
        ("classes=10000000000000000", "less than or equal to 1000000"),
        ("in_channels=100000000000000000", "less than or equal to 1024"),
        ("width=wide", "greater than or equal to 0.015625 and less than or equal to 8"),
        ("size=0", "greater than or equal to 1"),
        ("size=wide", "integer; it should be greater than or equal to 1"),
        ("classes=0", "greater than or equal to 1"),
        ("sise=112", "did you mean size"),
    ],
)
def test_wrong_values_are_refused_with_the_allowed_ones(values: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        describe_networks([values])
    assert said in refused.value.what and values.partition("=")[0] in refused.value.what


@pytest.mark.slow
def test_a_network_is_told_for_the_clips_it_is_published_for() -> None:
    """Named alone as in the table of all."""
    alone, table = describe_networks(["name=i3d"]), {row["name"]: row for row in describe_networks([])["models"]}
    assert alone == table["i3d"] and (alone["frames"], alone["size"], alone["gmacs"]) == (64, 224, 111.15)
    assert describe_networks(["name=i3d", "frames=16"])["frames"] == 16


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_that_is_admitted_is_counted(name: str) -> None:
    most = ["frames=10000", "size=4096", "classes=1000000", "width=8"]
    most += [] if name == "fused3d" else ["in_channels=1024"]
    assert describe_networks([f"name={name}", *most])["gmacs"] > 1e6
