"""Reads published weights of any supported format as a network of the zoo and its state dict."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.conversion.caffe2 import blobs_of, is_solvers, names_from_caffe2
from pretrain.conversion.file_kind import kind_of
from pretrain.conversion.identify import Recognised, recognise
from pretrain.conversion.inflation import INFLATABLE, inflated, is_flat, named_as_ours
from pretrain.conversion.mmaction2 import from_mmaction2, is_mmaction2s
from pretrain.conversion.safe_pickle import read_arrays
from pretrain.conversion.torch_archive import read_archive, records
from pretrain.conversion.wrapped import ALONE, unwrapped
from pretrain.models.meta_device import on_meta
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import check_weights, first_names
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from sharding.base.settings import validate

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CLIP = 16  # frames; of no weight's shape but R2D's and C3D's, which say theirs

_PICKLES = f"give one of VMZ's Caffe2 .pkl files; of another network, in a place where you trust it, {ALONE}"


@dataclass(frozen=True)
class Published:
    """A network found in a file, and its tensors by our names.

    `set_aside`: what the file holds besides the network. `flat`: the tensors were a 2D network's, now inflated.
    `frames`, `size`: of a clip, where they were given or the weights tell. `notes`: what the user should know.
    """

    settings: ModelSettings
    classes: int
    state: dict[str, Tensor]
    frames: int | None = None
    size: int | None = None
    set_aside: list[str] = field(default_factory=list)
    flat: bool = False
    notes: list[str] = field(default_factory=list)


def read_published(path: Path, inflate: str | None = None, frames: int | None = None) -> Published:
    """Read a file of weights, whatever it is called: what `torch.save` wrote, VMZ's Caffe2 pickles, safetensors.

    Nothing in the file is run: PyTorch's are read with `weights_only`, or by `read_archive` where they hold objects of
    other classes (a trainer's settings); Caffe2's by `read_arrays`. The network may lie in a trainer's dictionaries and
    behind a wrapper's names (`unwrapped`). `inflate` names
    the network that a 2D network's weights become, `frames` the clips' length (for R2D and C3D a shape depends on
    it). Set aside are a solver's values (`*_momentum`, `lr`, `model_iter`) and what a trainer saves beside the
    network's tensors.

    Raises UserError for a file that is missing, damaged, holds more than tensors, or is of no network here; and
    naming the tensors that are missing, left over, or of another shape than the network's.
    """
    file = _read(path)
    state = file.state
    if is_flat(state):
        network, state = _inflated(state, inflate, frames, str(path))
        flat = True
    else:
        if inflate:
            raise UserError(
                "the weights are not a 2D network's, and need no inflation", str(path), "leave --inflate out"
            )
        network, flat = recognise(_shapes(state), str(path), "caffe2" if file.blobs else "pytorch"), False
    if network.settings.name == "r2d" and frames not in (None, network.frames):
        raise UserError(
            f"this R2D takes clips of {network.frames} frames, and no others", str(path), "leave --frames out"
        )
    network = replace(network, frames=frames or network.frames)
    _check(network, state, file.blobs, str(path))
    return Published(
        network.settings, network.classes, state, network.frames, network.size, file.set_aside, flat, file.notes
    )


def _check(network: Recognised, state: Mapping[str, Tensor], blobs: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises UserError unless the tensors are the network's, naming those missing as the file would."""
    model = meta_network(network.settings, network.classes, network.frames, network.size)
    try:
        check_weights(model, state, "keep", where, "give a file that is whole, of one of the zoo's networks")
    except UserError as error:
        missing = blobs_of([name for name in model.state_dict() if name not in state], blobs, where) if blobs else {}
        if not missing:
            raise
        what = f"{error.what}; missing in the file's names: {first_names(list(missing.values()))}"
        raise UserError(what, where, error.remedy) from error


def _inflated(
    state: dict[str, Tensor], into: str | None, frames: int | None, where: str
) -> tuple[Recognised, dict[str, Tensor]]:
    """The video network that a 2D network becomes. torchvision's 2D ResNets have pool1, and 1e-5 for BN's eps."""
    ours = named_as_ours(state)
    flat = {name: (*shape[:2], 1, *shape[2:]) if len(shape) == 4 else shape for name, shape in _shapes(ours).items()}
    network = recognise(flat, where)  # a ResNet whose kernels all span one frame: fr2d
    resnet = network.settings.name != "i3d"
    choices = tuple(name for name in INFLATABLE if (name != "i3d") == resnet)
    target = into if into or resnet else "i3d"
    if target not in (*choices, "r2plus1d"):
        asked = f"cannot become {target}" if target else "must become a video network"
        raise UserError(f"a 2D network's weights {asked}", where, f"give --inflate one of {', '.join(choices)}")
    if resnet:
        tree = network.settings.model_dump() | {"name": target, "pool1": True, "eps": 1e-5}
        length = (frames or _CLIP) if target == "r2d" else None
        network = Recognised(validate(ModelSettings, tree, where), network.classes, length)
    return network, inflated(state, meta_network(network.settings, network.classes, network.frames))


def meta_network(
    settings: ModelSettings, classes: int, frames: int | None = None, size: int | None = None
) -> VideoNetwork:
    """The network with names and shapes and no memory behind them."""
    with on_meta():
        return build_model(settings, classes, frames or _CLIP, size or 112)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@dataclass(frozen=True)
class _File:
    """A file's tensors by our names, what was set aside, and the shapes of the blobs they were in Caffe2."""

    state: dict[str, Tensor]
    set_aside: list[str]
    notes: list[str] = field(default_factory=list)
    blobs: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _read(path: Path) -> _File:
    """Read a file by what it holds, whatever it is called."""
    kind = kind_of(path)
    if kind == "pickle":
        return _caffe2(path)
    if kind == "safetensors":
        return _network_of(read_safetensors(path), str(path))
    tree, foreign = _pytorch(path)
    file = _network_of(tree, str(path))
    if not foreign:
        return file
    return replace(file, notes=[*file.notes, f"neither read nor run: {first_names(foreign)}"])


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors. Raises UserError for a damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file cannot be read: {error}", str(path), "fetch it again") from error


def _pytorch(path: Path) -> tuple[Any, list[str]]:
    """What `torch.save` wrote, and the classes in it that are of no tensors, of which no object was made."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True), []
    except Exception as error:  # a damaged or hostile file can raise anything
        names = records(path)
        if any(name.endswith("/data.pkl") for name in names) and "TorchScript archives" not in str(error):
            tree, foreign = read_archive(path)
            return tree, sorted(foreign)
        if names and not any(name.endswith(".pkl") for name in names):
            what = f"the file is a zip that torch.save did not write, of {first_names(names)}"
            raise UserError(what, str(path), f"give what is packed in it, or {ALONE}") from error
        named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if named:
            what = f"the file holds more than tensors ({named[1]}); nothing of it was run"
            remedy = f"in a place where you trust it, {ALONE}"
        elif "TorchScript archives" in str(error):
            what = "the file is a TorchScript archive, which holds a program; nothing of it was run"
            remedy = f"in a place where you trust it, load it with torch.jit.load as model and {ALONE}"
        elif "weights_only" in str(error) or _is_pickle(path):
            what = (
                "the file is a pickle, as PyTorch wrote them before 1.6 or another program does, of more than tensors "
                "or damaged; nothing of it was run"
            )
            remedy = f"in a place where you trust it, {ALONE}"
        else:
            first = str(error).partition("\n")[0][:200]
            what = f"the file is damaged, or no PyTorch file ({type(error).__name__}: {first})"
            remedy = "fetch it again"
        raise UserError(what, str(path), remedy) from error


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle of the protocols 2 to 5 does."""
    with path.open("rb") as file:
        start = file.read(2)
    return start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4", b"\5")


def _network_of(tree: Any, where: str) -> _File:
    """The network's tensors in what a trainer saved, by torchvision's names where it is mmaction2's; and the rest."""
    network = unwrapped(tree, where)
    state = from_mmaction2(network.state, where) if is_mmaction2s(network.state) else network.state
    _refuse({name: _fault(name, value) for name, value in state.items()}, where)
    return _File({k: v.detach().clone().contiguous() for k, v in state.items()}, network.set_aside, network.notes)


def _fault(name: str, value: Tensor) -> str | None:
    """Why the tensor is no weights, if it is none."""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else _of_torch(value.layout)
    counts = name.endswith("num_batches_tracked") and not (value.is_complex() or value.dtype == torch.bool)
    if value.dtype not in _FLOATS and not counts:
        return _of_torch(value.dtype)
    if value.is_meta:
        return "without values"
    return None if bool(torch.isfinite(value).all()) else f"{_of_torch(value.dtype)}, not finite"


def _of_torch(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _refuse(faults: Mapping[str, str | None], where: str) -> None:
    """Raises UserError if there are any, naming what has them."""
    named = [f"{name} ({fault})" for name, fault in faults.items() if fault]
    if named:
        raise UserError(
            f"{len(named)} tensors are no weights: {first_names(named)}",
            where,
            "give dense tensors of finite numbers in float16, bfloat16, float32 or float64",
        )


def _caffe2(path: Path) -> _File:
    tree = read_arrays(path)
    blobs = tree.get("blobs", tree) if isinstance(tree, dict) else {}
    aside = [str(key) for key in tree if key != "blobs"] if blobs is not tree and isinstance(tree, dict) else []
    if not isinstance(blobs, dict) or not blobs:
        raise UserError("the file is a pickle, and holds no blobs by name as VMZ's do", str(path), _PICKLES)
    aside += [str(name) for name in blobs if is_solvers(str(name))]
    arrays = {str(name): value for name, value in blobs.items() if not is_solvers(str(name))}
    others = [name for name, value in arrays.items() if not hasattr(value, "shape")]
    if others:
        what = f"the file is a pickle, and these in it are no arrays as in VMZ's: {first_names(others)}"
        raise UserError(what, str(path), _PICKLES)
    shapes = {name: tuple(value.shape) for name, value in arrays.items()}
    names = names_from_caffe2(shapes, str(path))
    _refuse({blob: _fault_of_array(value) for blob, value in arrays.items()}, str(path))
    state = {names[blob]: torch.from_numpy(value) for blob, value in arrays.items()}
    # VMZ's fully convolutional prediction keeps the classifier as a 1×1×1 convolution.
    state = {name: value.flatten(1) if name == "fc.weight" else value for name, value in state.items()}
    return _File(state, aside, blobs=shapes)


def _fault_of_array(value: NDArray[Any]) -> str | None:
    """Why the array is no weights, if it is none."""
    if value.dtype not in (np.float16, np.float32, np.float64):
        return str(value.dtype)
    return None if np.isfinite(value).all() else f"{value.dtype}, not finite"
