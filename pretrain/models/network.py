"""The base class of every video network of the zoo: clips in, logits out, a classifier that can be swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.models.compute.batchnorm import statistics_held
from pretrain.models.compute.compute_path import COMPUTE_PATHS, ComputePath, Convolution, set_compute_path
from pretrain.models.compute.weight_cast import cast_at_once


class VideoNetwork(nn.Module):
    """A network over clips: normalised N C T H W → logits N classes.

    `head` is the classifier's name in the state dict. `stages` names the layers before it, group by group; `parts`
    names those that have weights by the part they belong to (`groups`), from the first to the last.

    `graphed_features` computes what `features_by_compute_path` does in its place, where it is set
    (`pretrain.engine.cuda_graph`); it is of this very network, and copies have none.
    """

    head: ClassVar[str]
    stages: ClassVar[tuple[tuple[str, ...], ...]]
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    compute_path: ComputePath = COMPUTE_PATHS["channels-last"]
    graphed_features: Callable[[Tensor], Tensor] | None = None

    @property
    def in_channels(self) -> int:
        """Channels of a clip: those of the first convolution."""
        return next(module.in_channels for module in self.modules() if isinstance(module, nn.Conv3d))

    def features(self, clips: Tensor) -> Tensor:
        """The network up to its classifier: N C T H W → N D (N D T' for a classifier that is a convolution)."""
        return self.pool(self.through_stages(clips))

    def pool(self, activations: Tensor) -> Tensor:
        """What `features` makes of the last stage's activations N C T H W, of pictures of any size.

        A network that pools otherwise than over whole pictures has its own `features`, and no `pool`.
        """
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """The classifier: what `features` gave → logits N classes."""
        raise NotImplementedError

    def forward(self, clips: Tensor) -> Tensor:
        """Logits, N classes, of clips N C T H W."""
        return self.classify((self.graphed_features or self.features_by_compute_path)(clips))

    @property
    def is_fully_convolutional(self) -> bool:
        """Whether it takes larger pictures than it was built for."""
        return type(self).pool is not VideoNetwork.pool

    def logits_at_places(self, clips: Tensor, window: tuple[int, int]) -> Tensor:
        """Logits at each place of a window (height, width) that moves over the last stage's map: N places classes.

        At stride 1 and by rows, over all of time. As an average pool of that window followed by the classifier as a
        1×1×1 convolution: VMZ's `use_convolutional_pred`, of which 8 × 8 of a window of 7 × 7 gives 2 × 2 places.
        """
        maps = self._by_compute_path(self.through_stages, clips)  # N C T H W
        height, width = window
        rows, columns = range(maps.shape[3] - height + 1), range(maps.shape[4] - width + 1)
        parts = (maps[..., row : row + height, column : column + width] for row in rows for column in columns)
        return torch.stack([self.classify(self.pool(part)) for part in parts], dim=1)

    def features_by_compute_path(self, clips: Tensor) -> Tensor:
        """`features` by the network's compute path, its weights cast as that says: all before the classifier."""
        return self._by_compute_path(self.features, clips)

    def _by_compute_path(self, layers: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        order = torch.channels_last_3d if self.compute_path.channels_last else torch.contiguous_format
        if not self._reads_blocks(clips):
            clips = clips.contiguous(memory_format=order)
        # What is recomputed in the backward pass would not find the weights that this pass was cast for.
        once = self.compute_path.cast_at_once and not self.compute_path.recomputed
        with cast_at_once(self, clips.device) if once else nullcontext():
            return layers(clips)

    def _reads_blocks(self, clips: Tensor) -> bool:
        """Whether the first layer makes blocks of the pixels, in whatever order they lie."""
        first = next((layer for layer in self.modules() if isinstance(layer, Convolution)), None)
        return first is not None and first.uses_space_to_depth(clips)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "graphed_features"}

    def use(self, compute_path: ComputePath) -> None:
        """Compute by `compute_path` from now on: the same function."""
        self.compute_path = compute_path
        set_compute_path(self, compute_path)

    def through_stages(self, x: Tensor) -> Tensor:
        """The layers of `stages` one after the other: N C T H W → N C' T' H' W'."""
        for number, group in enumerate(self.stages):
            layers = [self.get_submodule(name) for name in group]
            if number < self.compute_path.recomputed and torch.is_grad_enabled():
                # No layer of the stages draws; asking a GPU's generator for its state could not be captured.
                x = checkpoint(_chain, layers, x, use_reentrant=False, context_fn=_seen_once, preserve_rng_state=False)
            else:
                x = _chain(layers, x)
        return x


class LaneDropout(nn.Module):
    """Dropout whose draws are a lane's own: the same whatever lanes are computed at once, and wherever.

    Before a training step `seed` gives the lanes of the coming batch, which share it evenly, in order. Without
    it, it is plain dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._draws: list[torch.Generator] = []

    def seed(self, seeds: Sequence[int], device: torch.device) -> None:
        """One seed for each lane of the coming batch."""
        self._draws = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def forward(self, x: Tensor) -> Tensor:
        """x, or in training x / (1 - p) with a share p of its values set to zero."""
        if not self.training or not self.p:
            return x
        if not self._draws:
            return torch.nn.functional.dropout(x, self.p)
        lanes = zip(x.chunk(len(self._draws)), self._draws, strict=True)
        kept = [torch.rand(lane.shape, generator=draw, device=x.device) >= self.p for lane, draw in lanes]
        return x * torch.cat(kept) / (1 - self.p)


def seed_dropout(model: nn.Module, seeds: Sequence[int], device: torch.device) -> None:
    """Seed every dropout layer for the lanes of the coming batch."""
    for module in model.modules():
        if isinstance(module, LaneDropout):
            module.seed(seeds, device)


def _chain(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _seen_once() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward pass, and around its repetition, whose batch statistics are counted already."""
    return nullcontext(), statistics_held()
