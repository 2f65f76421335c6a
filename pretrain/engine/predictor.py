"""Predictions by a network in training: by its averaged weights, by ZeRO 3's gathered ones, or by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World
from pretrain.engine.precision import autocast
from pretrain.engine.zero_state import Partitions
from pretrain.models.compute.batchnorm import discard_statistics, recompute_statistics


class Predictor:
    """Predicts by the model, or by whole copies of it where its own weights are in partitions, or are not those meant.

    A copy is made once between two steps of training, after which `forget` drops it.
    """

    def __init__(
        self, model: nn.Module, blank: nn.Module | None, partitions: Partitions, settings: EngineSettings, world: World
    ) -> None:
        """`blank`: what `blank_copy` gave before DeepSpeed changed the model. `partitions`: of the trained weights."""
        self._model, self._blank, self._partitions = model, blank, partitions
        self._settings, self._world = settings, world
        self._copies: dict[bool, nn.Module] = {}

    def predict(self, video: Tensor, averaged: bool = False) -> Tensor:
        """Logits [N, classes] in fp32, in the training's precision and without gradients.

        `averaged`: of the weights' moving average, which the settings must ask for, with the model's own BN
        statistics. The mode is the caller's, but for averaged weights and under ZeRO 3: there a whole copy of the
        network predicts, in evaluation mode, which `gather` makes or else the first prediction after a step, either
        on all ranks.
        """
        network = self._model
        if averaged or self._settings.zero == 3:
            self.gather(averaged)
            network = self._copies[averaged]
        with torch.no_grad(), autocast(self._world.device, self._settings.precision):
            logits: Tensor = network(video)
            return logits.float()

    def gather(self, averaged: bool = False) -> None:
        """Make `predict` free of collectives until the next step. One itself; a second time it does nothing."""
        if (not averaged and self._settings.zero != 3) or averaged in self._copies:
            return
        if self._blank is None or (averaged and self._settings.average is None):
            raise ValueError("this run keeps no average of its weights: engine.average is not set")
        network = copy.deepcopy(self._blank).to_empty(device=self._world.device)
        discard_statistics(network)
        values = {name: value.clone() for name, value in self._partitions.weights()}
        if averaged:
            values |= {name: value.clone() for name, value in self._partitions.average()}
        network.load_state_dict({**values, **dict(buffers_of(self._model))})
        self._copies[averaged] = network.eval()

    def recompute_statistics(self, batches: Iterable[Tensor]) -> None:
        """Set the running BN statistics to the mean over many batches, all ranks' shares together. A collective.

        They are those of the weights that are used: of their average where the settings ask for one.
        `pretrain.models.compute.batchnorm.recompute_statistics` says how; by the copy that predicts where there is one.
        """
        averaged = self._settings.average is not None
        self.gather(averaged)
        network = self._copies.get(averaged, self._model)
        recompute_statistics(network, batches, lambda video: self.predict(video, averaged), self._world.sum_)
        if network is not self._model:
            recomputed = network.state_dict()
            for name, buffer in buffers_of(self._model):
                buffer.copy_(recomputed[name])
            self._copies = {averaged: network}  # another's statistics are the old ones

    def forget(self) -> None:
        """Drop the copies: the weights have moved."""
        self._copies.clear()


def blank_copy(model: nn.Module, settings: EngineSettings) -> nn.Module | None:
    """A network without memory, of which `Predictor` makes its copies; None where it needs none."""
    return copy.deepcopy(model).to("meta") if settings.zero == 3 or settings.average else None


def buffers_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What a model's state dict holds besides weights, such as BN statistics, by name."""
    weights = {name for name, _ in model.named_parameters()}
    return [(name, value) for name, value in model.state_dict().items() if name not in weights]
