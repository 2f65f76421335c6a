"""The command line with a planar compute path that is measured the fastest, and fails with DeepSpeed's weights.

As a compiled kernel did on a GPU: its weights lay at any address from then on. FAILS=lost: the device with it.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from cluster.cli import main
from pretrain.engine.autotune import choose
from pretrain.models.compute.compute_path import Convolution

_SECONDS = {"planar": 1.0, "channels-last": 2.0, "plain": 3.0}


def failing(compute: Any) -> Any:
    """`Convolution.compute` that wants the weight alone in its memory where it runs as a 2D one."""

    def computed(self: Convolution, x: Tensor, weight: Tensor) -> Tensor:
        if self.planar and torch.is_grad_enabled() and weight.untyped_storage().nbytes() > weight.nbytes:
            lost = os.environ["FAILS"] == "lost"
            raise RuntimeError(
                f"{'CUDA error: misaligned address' if lost else 'weights at an odd address'}\nmore of it"
            )
        return compute(self, x, weight)

    return computed


if __name__ == "__main__":
    Convolution.compute = failing(Convolution.compute)  # type: ignore[method-assign]
    choose.measure = lambda model, clips, precision, compute_paths, **_: {
        name: _SECONDS[name] for name in compute_paths
    }
    choose.planar_layers = lambda *_: frozenset({"stem.0", "layer1.0.conv1.0.3"})
    main()
