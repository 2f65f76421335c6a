"""The training state of weights, in the partitions that ZeRO spreads over ranks: gathered whole, and set back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sharding.base.errors import UserError

AVERAGE = "average"
_STEP = "step"
_KINDS = {torch.optim.SGD: ("momentum_buffer",), torch.optim.AdamW: ("exp_avg", "exp_avg_sq")}


class Partitions:
    """The optimizer's state of every trained weight, and the moving average of the weights, at any ZeRO stage.

    Under ZeRO 1 to 3 a rank has a part of each, and of the weights; the average is kept where the optimizer keeps
    its own state, as a rank's part too. `decay` is the average's, None for no average. What gathers or sets whole
    tensors is a collective.
    """

    def __init__(self, model: nn.Module, optimizer: Any, zero: int, decay: float | None) -> None:
        self._model, self._optimizer, self._zero, self._decay = model, optimizer, zero, decay
        self._trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        inner = optimizer.optimizer if zero else optimizer
        self._state: dict[Tensor, dict[str, Tensor]] = inner.state
        kept: dict[int, Callable[[], list[Tensor]]] = {
            0: lambda: [value for _, value in self._trained],
            1: lambda: optimizer.single_partition_of_fp32_groups,
            2: lambda: optimizer.single_partition_of_fp32_groups,
            3: lambda: optimizer.fp32_partitioned_groups_flat,
        }
        self._partitions = kept[zero]()
        self._kinds: tuple[str, ...] = next(keys for kind, keys in _KINDS.items() if isinstance(inner, kind))
        if not inner.defaults.get("momentum", 1):
            self._kinds = ()
        self._counts = isinstance(inner, torch.optim.AdamW)
        self._make()

    @torch.no_grad()
    def _make(self) -> None:
        """Give each part the state that the first step would make, and link whole weights to it.

        Left to itself DeepSpeed (0.19) links, by the private function called here, after the first group's first step,
        when the other groups have no state yet. Momentum of zero is what SGD's first step takes as none.
        """
        for part in self._partitions:
            state = self._state[part]
            for kind in self._kinds:
                state[kind] = torch.zeros_like(part)
            if self._counts:
                state[_STEP] = torch.zeros((), device=part.device)  # where a fused optimizer counts
            if self._decay is not None:
                state[AVERAGE] = part.detach().clone()
        if self._zero in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def follow(self, finite: Tensor) -> None:
        """Move the average one step towards the weights where `finite`, a bool on the device, says so."""
        if self._decay is not None:
            for part in self._partitions:
                average = self._state[part][AVERAGE]
                torch.where(finite, average.lerp(part, 1 - self._decay), average, out=average)

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Afterwards the weights and what moves with them are on this rank as before, to the bit. No collective.

        But after an error inside, which leaves what the optimizer made of them.
        """
        states = [self._state[part] for part in self._partitions]
        moved = [*self._partitions, *(value for state in states for value in state.values())]
        weights = [value for _, value in self._trained]
        whole = [value for value in weights if not _is_shared_out(value)]
        moved += [_shared(value) for value in weights] if self._zero == 3 else []
        kept, values = ([value.detach().to("cpu", copy=True) for value in each] for each in (moved, whole))
        yield
        with torch.no_grad():
            for value, before in zip(moved, kept, strict=True):
                value.copy_(before)
            for value, before in zip(whole, values, strict=True):  # ZeRO 3 has gathered them anew, elsewhere
                value.copy_(before)
        held = {id(value) for value in whole}
        for value in weights:
            if id(value) not in held and not _is_shared_out(value):
                value.partition()  # type: ignore[attr-defined]

    def optimizer(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's whole tensors by "<kind>:<parameter>", one after the other."""
        for kind in self._kinds:
            yield from ((f"{kind}:{name}", value) for name, value in self._whole(kind))
        if self._counts:  # every part has taken as many steps
            taken = self._state[self._partitions[0]][_STEP]
            yield from ((f"{_STEP}:{name}", taken) for name, _ in self._trained)

    def average(self) -> Iterator[tuple[str, Tensor]]:
        """The average's whole tensors by parameter; of a run without one, none."""
        if self._decay is not None:
            yield from self._whole(AVERAGE)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole weights by parameter, those of frozen layers too."""
        from deepspeed.runtime.zero import GatheredParameters

        for name, value in self._model.named_parameters():
            with GatheredParameters([value], enabled=self._zero == 3):
                yield name, value.detach()

    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Take over whole weights, which the average then begins at."""
        from deepspeed.runtime.zero import GatheredParameters

        for name, value in self._model.named_parameters():
            with torch.no_grad(), GatheredParameters([value], modifier_rank=0, enabled=self._zero == 3):
                value.copy_(values[name])
        if self._zero:
            self._set(None, values)
        if self._decay is not None:
            self._set(AVERAGE, values)

    def set_optimizer(self, values: Mapping[str, Tensor]) -> None:
        """Take over what `optimizer` gave, at whatever world size and stage. Raises UserError where some is missing."""
        for kind in self._kinds:
            self._set(kind, _of_kind(kind, values, self._trained))
        if self._counts:
            taken = max(float(value) for value in _of_kind(_STEP, values, self._trained).values())
            for part in self._partitions:
                self._state[part][_STEP].fill_(taken)

    def set_average(self, values: Mapping[str, Tensor]) -> None:
        """Take over what `average` gave."""
        if self._decay is not None:
            self._set(AVERAGE, values)

    def _whole(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, value in self._trained:
            yield name, safe_get_full_optimizer_state(value, kind) if self._zero else self._state[value][kind]

    def _set(self, kind: str | None, values: Mapping[str, Tensor]) -> None:
        """Set a state of all trained weights; None: the weights that the optimizer moves."""
        from deepspeed import utils

        for name, value in self._trained:
            whole = values[name].to(value.device, torch.float32)
            if self._zero == 3:
                # DeepSpeed's function for whole tensors fails on those that its ranks cannot share evenly.
                size, rank = _shared(value).numel(), torch.distributed.get_rank()
                part = whole.flatten()[size * rank : size * (rank + 1)]
                part = nn.functional.pad(part, (0, size - len(part)))
                if kind is None:
                    utils.safe_set_local_fp32_param(value, part)
                else:
                    utils.safe_set_local_optimizer_state(value, part, kind)
            elif self._zero and kind is None:
                utils.safe_set_full_fp32_param(value, whole)
            elif self._zero:
                utils.safe_set_full_optimizer_state(value, whole, kind)
            elif kind is not None:
                self._state[value][kind].copy_(whole)


def _shared(weight: Any) -> Tensor:
    """A rank's part of a weight under ZeRO 3, padded to the same size on every rank."""
    part: Tensor = weight.ds_tensor
    return part


def _is_shared_out(weight: Any) -> bool:
    """Whether this rank has but its part of a weight, under ZeRO 3.

    DeepSpeed (0.19) keeps small weights whole between steps from their first fetch on, and says by `ds_status` which
    are; `partition` lets go of the whole one without asking another rank.
    """
    status = getattr(weight, "ds_status", None)
    return status is not None and status.name == "NOT_AVAILABLE"


def _of_kind(kind: str, values: Mapping[str, Tensor], trained: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    values_of_kind = {name: values.get(f"{kind}:{name}") for name, _ in trained}
    missing = [name for name, value in values_of_kind.items() if value is None]
    if missing:
        raise UserError(
            f"the checkpoint has no {kind} for {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            "engine.optimizer",
            "go on with the run's own optimizer (and its momentum), or begin another run from its weights",
        )
    return {name: value for name, value in values_of_kind.items() if value is not None}
