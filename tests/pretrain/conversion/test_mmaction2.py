"""mmaction2's networks: its 2D ResNet is read, its video networks are refused with what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.conversion.published import read_published
from pretrain.models.weights import load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from tests.support.training.published_files import (
    Shapes,
    doubled,
    image_shapes,
    random_state,
)
from tests.support.training.published_networks import image_network


def convmodules(inputs: int, outputs: int, kernel: tuple[int, int, int], name: str, factored: bool) -> Shapes:
    """mmcv's ConvModule, of Conv3d or mmaction2's Conv2plus1d."""

    def norm(name: str, planes: int) -> Shapes:
        kept = {f"{name}.{key}": (planes,) for key in ("weight", "bias", "running_mean", "running_var")}
        return kept | {f"{name}.num_batches_tracked": ()}

    time, side, _ = kernel
    if not factored:
        return {f"{name}.conv.weight": (outputs, inputs, *kernel)} | norm(f"{name}.bn", outputs)
    middle = int(3 * inputs * outputs * side * side / (inputs * side * side + 3 * outputs))
    spatial = {f"{name}.conv.conv_s.weight": (middle, inputs, 1, side, side)} | norm(f"{name}.conv.bn_s", middle)
    return spatial | {f"{name}.conv.conv_t.weight": (outputs, middle, time, 1, 1)} | norm(f"{name}.bn", outputs)


def mmaction2_shapes(factored: bool, planes: int = 64, classes: int = 400) -> Shapes:
    """mmaction2's ResNet2Plus1d or ResNet3d of depth 18, in a Recognizer3D with I3DHead."""
    shapes, inputs = convmodules(3, planes, (3, 7, 7), "backbone.conv1", factored), planes
    for stage in range(4):
        outputs = planes * 2**stage
        for block in range(2):
            name = f"backbone.layer{stage + 1}.{block}"
            shapes |= convmodules(inputs, outputs, (3, 3, 3), f"{name}.conv1", factored)
            shapes |= convmodules(outputs, outputs, (3, 3, 3), f"{name}.conv2", factored)
            if inputs != outputs:
                shapes |= convmodules(inputs, outputs, (1, 1, 1), f"{name}.downsample", factored)
            inputs = outputs
    return shapes | {"cls_head.fc_cls.weight": (classes, inputs), "cls_head.fc_cls.bias": (classes,)}


def test_mmaction2s_video_networks_are_refused_with_what_differs(tmp_path: Path) -> None:
    r2plus1d, r3d = random_state(mmaction2_shapes(True)), random_state(mmaction2_shapes(False, 8))
    c3d = {"backbone.conv1a.conv.weight": torch.ones(64, 3, 3, 3, 3), "backbone.conv1a.conv.bias": torch.ones(64)}
    c3d |= {"backbone.fc6.weight": torch.ones(2, 8192), "cls_head.fc_cls.weight": torch.ones(3, 2)}
    for state, parts in (
        (r2plus1d, ["mmaction2's R(2+1)D", "83 mid-planes", "layer2.0.downsample", "pools after the stem", "eps"]),
        (r3d, ["mmaction2's ResNet3d", "no weight tells"]),
        (c3d | {"cls_head.fc_cls.bias": torch.ones(3)}, ["mmaction2's C3D", "8192", "no batch normalisation"]),
    ):  # fmt: skip
        torch.save({"meta": {"cfg": "model = dict()"}, "state_dict": state}, tmp_path / "epoch_180.pth")
        with pytest.raises(UserError) as refused:
            read_published(tmp_path / "epoch_180.pth")
        assert [part for part in parts if part not in refused.value.what] == [], refused.value.what
        assert "ig65m" in refused.value.remedy


def test_mmaction2s_2d_resnet_is_torchvisions(tmp_path: Path) -> None:
    state = random_state(image_shapes(50, classes=4, planes=8))
    theirs = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[-2].startswith(("conv", "bn")):
            parts[-2:] = [f"conv{parts[-2][-1]}", parts[-2][:-1], parts[-1]]
        elif parts[-3:-2] == ["downsample"]:
            parts[-2] = ("conv", "bn")[int(parts[-2])]
        theirs["cls_head.fc_cls." + parts[-1] if name.startswith("fc.") else "backbone." + ".".join(parts)] = value
    torch.save({"state_dict": theirs, "meta": {}}, tmp_path / "tsn.pth")
    result = read_published(tmp_path / "tsn.pth", inflate="fr2d")
    assert result.flat and result.settings == ModelSettings(name="fr2d", depth=50, width=1 / 8, pool1=True, eps=1e-5)
    model = build_model(result.settings, result.classes, 8).double().eval()
    load_weights(model, result.state, "keep")
    images = torch.randn(1, 3, 32, 40, dtype=torch.float64)
    with torch.no_grad():
        ours = model(images.unsqueeze(2).expand(1, 3, 8, 32, 40))
    torch.testing.assert_close(ours, image_network(doubled(state), images)[1], rtol=1e-9, atol=1e-9)
