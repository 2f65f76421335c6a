"""Frames of a clip as a person is to see them: what the network sees, in RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain.data.device.tensors import plane_batch
from pretrain.data.device.transforms import pictures
from pretrain.data.reading.decode import decode_frames
from pretrain.data.reading.store_split import RangeReader, Sample
from pretrain.data.views.views import ClipSettings, centre_view


def frames_shown(source: RangeReader, sample: Sample, clip: ClipSettings, first: int, count: int) -> NDArray[np.uint8]:
    """`count` frames, spread over the clip that begins at frame `first`, centre-cropped: uint8 [count, H, W, 3].

    Of a clip of fewer, some come again. Pictures also where the network takes optical flow. Raises DamagedData.
    """
    wanted = clip.frame_numbers(sample.times, first)
    planes = decode_frames(source, sample, [wanted[i * len(wanted) // count] for i in range(count)])
    view = centre_view(clip, (sample.height, sample.width))
    shown: NDArray[np.uint8] = pictures(plane_batch([planes], [view]), clip)[0].permute(1, 2, 3, 0).numpy()
    return shown
