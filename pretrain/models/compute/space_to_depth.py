"""A convolution of pictures that strides by two, as one over blocks of 2 × 2 pixels: the same sums, other channels.

Three channels fill three of the eight or sixteen that a tensor core multiplies at once, and a 7 × 7 kernel's rows are
no multiple of anything. Over blocks the 1×7×7 convolution of stride 2 is a 1×4×4 one of stride 1 over 12 channels,
padded to 16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MULTIPLE = 16  # channels of a tensor core's product in half precision
_PICTURES = 4  # channels at the most of what is worth it


def fits_blocks(layer: nn.Conv3d) -> bool:
    """Whether the layer strides by two over pictures or flow, with an odd kernel padded by its half."""
    _, height, width = layer.kernel_size
    return (
        layer.in_channels <= _PICTURES
        and layer.stride[1:] == (2, 2)
        and height == width
        and height % 2 == 1
        and height > 1
        and layer.padding[1:] == (height // 2, height // 2)
        and layer.dilation == (1, 1, 1)
        and layer.groups == 1
    )


def space_to_depth(x: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pictures N C T H W in `dtype` and a weight O C t k k → N 16 T H/2+b W/2+b and O 16 t (k+1)/2 (k+1)/2.

    Convolved at stride 1 along height and width without padding, they give what a convolution of stride 2 padded by
    k // 2 gives. The weight's gradient reaches the weight as it was given; the pictures have none.
    """
    kernel = weight.shape[-1]
    front, size = kernel // 2 % 2, (kernel + 1) // 2  # a kernel of size 2 × 2 blocks begins at an even pixel
    before = (kernel // 2 + front) // 2
    return _picture_blocks(x.detach(), before, size - 1 - before, dtype), _kernel_blocks(weight, front, size)


def _picture_blocks(x: Tensor, before: int, after: int, dtype: torch.dtype) -> Tensor:
    batch, channels, frames, height, width = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    rows, columns = x.shape[3] // 2, x.shape[4] // 2
    around = before + after
    shape = (batch, frames, rows + around, columns + around, _padded(4 * channels))
    blocks = torch.zeros(shape, dtype=dtype, device=x.device)  # N T H W C
    inside = blocks[:, :, before : before + rows, before : before + columns, : 4 * channels]
    pixels = x.unflatten(4, (columns, 2)).unflatten(3, (rows, 2))  # N C T H 2 W 2
    inside.unflatten(-1, (2, 2, channels)).copy_(pixels.permute(0, 2, 3, 5, 4, 6, 1))
    return blocks.permute(0, 4, 1, 2, 3)


def _kernel_blocks(weight: Tensor, front: int, size: int) -> Tensor:
    outputs, channels, time = weight.shape[:3]
    weight = F.pad(weight, (front, 1 - front, front, 1 - front))
    split = weight.reshape(outputs, channels, time, size, 2, size, 2)
    blocks = split.permute(0, 4, 6, 1, 2, 3, 5).reshape(outputs, 4 * channels, time, size, size)
    return F.pad(blocks, (0,) * 7 + (_padded(4 * channels) - 4 * channels,))


def _padded(channels: int) -> int:
    return -(-channels // _MULTIPLE) * _MULTIPLE
