"""What a network's channels say of its clips, where weights come in and go out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pretrain.conversion.export_file import Export
from pretrain.conversion.import_export import clip_settings_of
from pretrain.conversion.published import Published
from pretrain.data.views.views import ClipSettings
from pretrain.models.zoo import ModelSettings


def test_an_export_of_pictures_and_flow_says_which_channels_are_brought_to_a_range() -> None:
    clip = ClipSettings(input="rgb+flow", frames=4, resize=(18, 22), crop=16)
    enters = Export(ModelSettings(depth=10, in_channels=5), ["a", "b"], clip, {}, {}).normalisation
    assert enters and (enters["range"], enters["range_channels"], len(enters["mean"])) == ([0, 1], 3, 5)


@pytest.mark.parametrize(("channels", "input"), [(2, "flow"), (3, "rgb"), (5, "rgb+flow"), (4, "rgb")])
def test_weights_see_what_their_channels_say(channels: int, input: str) -> None:
    weights = Published(ModelSettings(depth=18, in_channels=channels), 6, {})
    assert clip_settings_of(weights).input == input
    assert clip_settings_of(replace(weights, flat=True)).input == input
