"""A convolution over blocks of pixels is the convolution over the pixels, to the last digits, gradients too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pretrain.models.compute.compute_path import Convolution
from pretrain.models.compute.space_to_depth import fits_blocks, space_to_depth
from pretrain.models.convolutions import conv3d

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@given(
    st.integers(1, 4), st.integers(1, 3), st.sampled_from([3, 5, 7, 9]), st.integers(4, 13), st.integers(4, 13),
    st.integers(1, 2), st.booleans(),
)  # fmt: skip
def test_it_is_the_convolution(
    channels: int, time: int, kernel: int, height: int, width: int, time_stride: int, channels_last: bool
) -> None:
    torch.manual_seed(kernel)
    layer = conv3d(channels, 5, (time, kernel, kernel), (time_stride, 2)).double()
    assert isinstance(layer, Convolution) and fits_blocks(layer)
    x = torch.randn(2, channels, 4, height, width, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    result = []
    for blocks in (False, True):
        layer.blocks = blocks
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.shape == layer.weight.shape
        result.append((y.detach(), layer.weight.grad))
    assert_close(result[1], result[0], **EXACT)


def test_the_stem_of_r2plus1d_is_a_4x4_convolution_over_sixteen_channels() -> None:
    x, weight = space_to_depth(torch.randn(2, 3, 4, 112, 112), torch.randn(48, 3, 1, 7, 7), torch.bfloat16)
    assert x.shape == (2, 16, 4, 59, 59) and x.is_contiguous(memory_format=torch.channels_last_3d)
    assert x.dtype == torch.bfloat16 and not x[:, 12:].any()
    assert weight.shape == (48, 16, 1, 4, 4)
    assert F.conv2d(x[:, :, 0], weight.squeeze(2).bfloat16()).shape == (2, 48, 56, 56)


@pytest.mark.parametrize(
    "layer",
    [
        conv3d(3, 8, (1, 7, 7)),  # no stride
        conv3d(8, 8, (1, 7, 7), (1, 2)),  # no pictures
        conv3d(3, 8, (1, 1, 1), (1, 2)),
        conv3d(3, 8, (1, 7, 7), (1, 2), padding=(0, 2, 2)),
    ],
)
def test_other_layers_stay_as_they_are(layer: Convolution) -> None:
    assert not fits_blocks(layer)
    x = torch.randn(1, layer.in_channels, 2, 12, 12)
    y = layer(x)
    layer.blocks = True
    assert torch.equal(layer(x), y)


def test_pictures_that_want_a_gradient_are_convolved_as_they_are() -> None:
    layer = conv3d(3, 4, (1, 7, 7), (1, 2))
    layer.blocks = True
    x = torch.randn(1, 3, 2, 12, 12, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.any()
