"""What every video network of the zoo is to the rest: clips in, logits out, a head that can be swapped."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class VideoNetwork(nn.Module):
    """A network over clips: normalised N C T H W → logits N classes.

    `head` is the classifier's name in the state dict; `features` is everything before it.
    """

    head: ClassVar[str]

    def features(self, clips: Tensor) -> Tensor:
        """The network up to its classifier: N C T H W → N D (D T' for a classifier that is a convolution)."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """The classifier: what `features` gave → logits N classes."""
        raise NotImplementedError

    def forward(self, clips: Tensor) -> Tensor:
        """Logits, N classes, of clips N C T H W."""
        # Channels last in memory is how every convolution here runs fastest.
        return self.classify(self.features(clips.contiguous(memory_format=torch.channels_last_3d)))
