"""Unwraps the network in what a trainer saved: its tensors, without the names and dictionaries around them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pretrain.conversion.torch_archive import Foreign
from pretrain.models.weights import first_names
from sharding.base.errors import UserError

ALONE = "save its state dict alone: torch.save(model.state_dict(), FILE)"
_DEEPEST = 4  # dictionaries in each other
# What wrappers put before and between the names: DataParallel's and DDP's, torch.compile's, FSDP's, activation
# checkpointing's, Lightning Fabric's.
_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
# The names that tell where a network begins: those of a ResNet's blocks, of I3D's and of C3D's convolutions.
_WITHIN = re.compile(
    r"(?:^|\.)(?:layer[1-4]\.\d+\.(?:conv|bn|downsample)|(?:Conv3d|Mixed)_\d[a-z]|conv[1-5][ab]?\.(?:[0-3]|conv)(?=\.)).*"
    r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)$"
)
_LAYERS = re.compile(
    r"stem\.|layer[1-4]\.|conv1\.|bn1\.|fc\.(weight|bias)$|(Conv3d|Mixed)_\d|logits\.|conv[1-5][ab]?\.|fc[678]\."
)
_CLASSIFIERS = ("fc", "fc8", "logits.conv3d")  # of the ResNets, C3D, I3D
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa)(?:[._\d]|$)|averag|shadow", re.IGNORECASE)
_OPTIMIZER = re.compile(r"optim", re.IGNORECASE)
_BESIDE = re.compile(r"criterion|loss|metric|(^|[._])(acc|accuracy|auroc|f1|n_averaged)([._]|\d|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Unwrapped:
    """A network's tensors by the names within it, what the file holds besides, and what its user should know."""

    state: dict[str, Tensor]
    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """Where a network lies: the keys that lead to its dictionary, and the name before its tensors' names."""

    keys: tuple[str, ...]
    prefix: str  # ends with a dot, or is empty
    count: int  # of the names that tell
    tensors: Mapping[str, Tensor]  # of the dictionary, without wrappers' names

    @property
    def path(self) -> str:
        return ".".join((*self.keys, f"{self.prefix}*"))

    def holds(self, name: str) -> bool:
        """Whether it is the name of a tensor that stands in the network, be it known there or not."""
        return name.startswith(self.prefix)

    def within(self, name: str) -> str:
        """The name in the network."""
        return name.removeprefix(self.prefix)

    def owns(self, name: str) -> bool:
        """Whether it is the name of a layer that a network has."""
        return self.holds(name) and _LAYERS.match(self.within(name)) is not None

    def own(self) -> dict[str, Tensor]:
        """The network's layers."""
        return {self.within(name): value for name, value in self.tensors.items() if self.owns(name)}


def unwrapped(tree: Any, where: str) -> Unwrapped:
    """The one network in a tree of dictionaries, wherever trainers and wrappers have put it.

    Wrappers' names (`module.`, `_orig_mod.`, …) go wherever they stand; before the network's own names any others
    may (`model.`, `net.`, `backbone.`, …). Of a network and its averaged weights it is the network. A classifier
    of one layer is one under any name (`cls_head.fc_cls`, `fc.1`). Optimizers' states, losses and metrics are set
    aside; other layers beside the network would make it another one.

    Raises UserError if there is no network, more than one, layers beside it, or something else than tensors in it.
    """
    places = list(_places(tree, where))
    if not places:
        return _unknown(tree, where)
    place = _chosen(places, where)
    aside = _beside(tree, place.keys)
    values = {str(name): value for name, value in _dictionary(tree, place.keys).items()}
    others = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    inside = {k: v for k, v in others.items() if _LAYERS.match(_cleaned(k).removeprefix(place.prefix))}
    if inside:
        raise _no_tensors(inside, where)
    copies = tuple(other.prefix for other in places if other.keys == place.keys and other.prefix != place.prefix)
    tensors = {name: value for name, value in place.tensors.items() if not _of_copy(name, place, copies)}
    beside = [name for name, value in tensors.items() if not place.owns(name) and _is_beside(name, value)]
    own = {place.within(name): value for name, value in tensors.items() if name not in beside and place.holds(name)}
    outside = {name: value for name, value in tensors.items() if name not in beside and not place.holds(name)}
    own, outside, classifier = _with_classifier(own, outside)
    if outside:
        raise UserError(
            f"beside the network {place.path} are layers ({first_names(list(outside))}), with which it is another",
            where,
            f"if the network is meant without them, load it where it was trained and {ALONE}",
        )
    notes = [f"the network is the file's {place.path}"] if place.prefix else []
    notes += [f"its classifier is the file's {classifier}.*"] if classifier else []
    return Unwrapped(own, [*aside, *others, *(f"{prefix}*" for prefix in copies), *beside], notes)


def _cleaned(name: str) -> str:
    """The name without wrappers' names."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _places(tree: Any, where: str) -> Iterator[_Place]:
    for keys, values in _dictionaries(tree):
        tensors: dict[str, Tensor] = {}
        for name, value in values.items():
            if isinstance(value, Tensor) and isinstance(name, str):
                cleaned = _cleaned(name)
                if cleaned in tensors:
                    raise UserError(f"two tensors are {cleaned} without wrappers' names", where, ALONE)
                tensors[cleaned] = value
        found = Counter(name[: match.start()] for name in tensors if (match := _WITHIN.search(name)))
        for prefix, count in found.items():
            if 2 * count > max(found.values()):
                yield _Place(keys, f"{prefix}." if prefix else "", count, tensors)


def _dictionaries(tree: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every dictionary of the tree once, and the keys that lead there; not those of optimizers."""
    dictionaries: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    seen = set()  # a pickle's dictionaries may hold each other
    for keys, values in dictionaries:
        if isinstance(values, dict) and id(values) not in seen:
            seen.add(id(values))
            yield keys, values
            inner = ((key, value) for key, value in values.items() if isinstance(key, str) and isinstance(value, dict))
            if len(keys) < _DEEPEST:
                dictionaries += [((*keys, key), value) for key, value in inner if not _OPTIMIZER.search(key)]


def _of_copy(name: str, place: _Place, copies: tuple[str, ...]) -> bool:
    """Whether the tensor is another network's of the dictionary, whose prefix may hold the place's or lie in it."""
    holders = [prefix for prefix in (place.prefix, *copies) if name.startswith(prefix)]
    return bool(holders) and max(holders, key=len) != place.prefix


def _dictionary(tree: Any, keys: tuple[str, ...]) -> Mapping[Any, Any]:
    for key in keys:
        tree = tree[key]
    found: Mapping[Any, Any] = tree
    return found


def _beside(tree: Any, keys: tuple[str, ...]) -> list[str]:
    """The keys that are not on the way."""
    beside: list[str] = []
    for key in keys:
        beside += [str(other) for other in tree if other != key]
        tree = tree[key]
    return beside


def _chosen(places: list[_Place], where: str) -> _Place:
    """The network itself rather than its averaged weights. Of several the one, if all hold the same."""
    plain = [place for place in places if not _AVERAGED.search(place.path)] or places
    most = max(place.count for place in plain)
    first, *others = (place for place in plain if 2 * place.count > most)
    if all(_same(first.own(), other.own()) for other in others):
        return first
    raise UserError(
        f"there are {1 + len(others)} networks in the file: {first_names([place.path for place in (first, *others)])}",
        where,
        "load the one that is meant where it was trained and " + ALONE,
    )


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)


def _equal(first: Tensor, second: Tensor) -> bool:
    strided = first.layout == second.layout == torch.strided and not (first.is_meta or second.is_meta)
    return strided and first.dtype == second.dtype and torch.equal(first, second)


def _with_classifier(
    own: dict[str, Tensor], outside: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], str | None]:
    """The network with its classifier under the name that it has in the zoo, and the name that it had elsewhere.

    It is taken only where the network lacks it, and where one linear layer is all there is in its part.
    """
    if any(f"{classifier}.weight" in own or f"{classifier}.bias" in own for classifier in _CLASSIFIERS):
        return own, outside, None
    loose = {name: value for name, value in own.items() if not _LAYERS.match(name)}
    heads = {name.removesuffix(".weight") for name, value in {**loose, **outside}.items() if _is_linear(name, value)}
    if len(heads) != 1:
        return own, outside, None
    (head,) = heads
    part = head.partition(".")[0]
    tensors = {name: value for name, value in {**loose, **outside}.items() if name.partition(".")[0] == part}
    if tensors.keys() != {f"{head}.weight", f"{head}.bias"}:
        return own, outside, None
    kept = {name: value for name, value in own.items() if name not in tensors}
    left = {name: value for name, value in outside.items() if name not in tensors}
    taken = {f"fc.{name.rpartition('.')[2]}": value for name, value in tensors.items()}
    return {**kept, **taken}, left, head


def _is_linear(name: str, value: Tensor) -> bool:
    return name.endswith(".weight") and value.dim() == 2


def _is_beside(name: str, value: Tensor) -> bool:
    """Whether the tensor is a loss' or a metric's, an average, or counts something."""
    return bool(_BESIDE.search(name) or _AVERAGED.search(name)) or not (value.is_floating_point() or value.is_complex())


def _unknown(tree: Any, where: str) -> Unwrapped:
    """Tensors whose names tell no network, for `recognise` to refuse; those of the largest dictionary."""
    dictionaries = [
        (keys, {str(k): v for k, v in values.items() if isinstance(v, Tensor)}) for keys, values in _dictionaries(tree)
    ]
    keys, tensors = max(dictionaries, key=lambda item: len(item[1]), default=((), {}))
    if not tensors:
        raise _no_tensors(tree if isinstance(tree, dict) else {"": tree}, where)
    flat = [name for name in tensors if name.endswith("flat_param")]
    if flat:
        raise UserError(
            f"FSDP has flattened the tensors into {first_names(flat)}, whose parts nothing here names",
            where,
            "save the full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True",
        )
    return Unwrapped({_cleaned(name): value for name, value in tensors.items()}, _beside(tree, keys))


def _no_tensors(values: Mapping[str, Any], where: str) -> UserError:
    """What stands where tensors should, by its classes where it is of foreign ones."""
    classes = sorted({value.named for value in values.values() if isinstance(value, Foreign)})
    if not values:
        return UserError("it holds no tensors by name", where, ALONE)
    if any("distributed" in name for name in classes):
        remedy = (
            "save the full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True"
        )
    else:
        remedy = f"in a place where you trust it, load it and {ALONE}" if classes else ALONE
    kinds = f", but {first_names(classes)}; nothing of it was run" if classes else ""
    names = [name for name in values if name]
    what = f"these are no tensors: {first_names(names)}" if names else "it holds no tensors by name"
    return UserError(what + kinds, where, remedy)
