"""Published weights: a file of anyone's to a network of the zoo and its state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.models.arrays import read_arrays
from pretrain.models.caffe2 import is_solvers, names_from_caffe2
from pretrain.models.inflation import INFLATABLE, inflated, is_flat, named_as_ours
from pretrain.models.network import VideoNetwork
from pretrain.models.recognise import Maker, Recognised, recognise
from pretrain.models.weights import check_weights, some
from pretrain.models.zoo import ModelSettings, build_model
from sharding.errors import UserError
from sharding.settings import validate

SUFFIXES = (".pth", ".pt", ".tar", ".pkl", ".safetensors")
_NESTED = ("state_dict", "model_state_dict", "model_state", "model")  # where trainers put the network's tensors
_DEEPEST = 3  # dictionaries in each other
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_CLIP = 16  # frames; of no weight's shape but R2D's and C3D's, which say theirs


@dataclass(frozen=True)
class Published:
    """A network found in a file, and its tensors by our names.

    `set_aside`: what the file holds besides the network. `flat`: the tensors were a 2D network's, now inflated.
    `frames`, `size`: of a clip, where they were given or the weights tell.
    """

    settings: ModelSettings
    classes: int
    state: dict[str, Tensor]
    frames: int | None = None
    size: int | None = None
    set_aside: list[str] = field(default_factory=list)
    flat: bool = False


def read_published(path: Path, inflate: str | None = None, frames: int | None = None) -> Published:
    """Read a file of weights: .pth, .pt (PyTorch), .pkl (VMZ's Caffe2), .safetensors.

    Nothing in the file is run: PyTorch's are read with `weights_only`, Caffe2's by `read_arrays`. `inflate` names
    the network that a 2D network's weights become, `frames` the clips' length (for R2D and C3D a shape depends on
    it). Set aside are a solver's values (`*_momentum`, `lr`, `model_iter`) and what a trainer saves beside the
    network's tensors.

    Raises UserError for a file that is missing, damaged, holds more than tensors, or is of no network here; and
    naming the tensors that are missing, left over, or of another shape than the network's.
    """
    state, set_aside, maker = _tensors(path)
    if is_flat(state):
        found, state = _inflated(state, inflate, frames, str(path))
        flat = True
    else:
        if inflate:
            raise UserError(
                "the weights are not a 2D network's, and need no inflation", str(path), "leave --inflate out"
            )
        found, flat = recognise(_shapes(state), str(path), maker), False
    found = replace(found, frames=frames or found.frames)
    check_weights(on_meta(found.settings, found.classes, found.frames, found.size), state, "keep", str(path))
    return Published(found.settings, found.classes, state, found.frames, found.size, set_aside, flat)


def _inflated(
    state: dict[str, Tensor], into: str | None, frames: int | None, where: str
) -> tuple[Recognised, dict[str, Tensor]]:
    """The video network that a 2D network becomes. torchvision's 2D ResNets have pool1, and 1e-5 for BN's eps."""
    ours = named_as_ours(state)
    flat = {name: (*shape[:2], 1, *shape[2:]) if len(shape) == 4 else shape for name, shape in _shapes(ours).items()}
    found = recognise(flat, where)  # a ResNet whose kernels all span one frame: fr2d
    resnet = found.settings.name != "i3d"
    choices = tuple(name for name in INFLATABLE if (name != "i3d") == resnet)
    target = into if into or resnet else "i3d"
    if target not in (*choices, "r2plus1d"):
        asked = f"cannot become {target}" if target else "must become a video network"
        raise UserError(f"a 2D network's weights {asked}", where, f"give --inflate one of {', '.join(choices)}")
    if resnet:
        tree = found.settings.model_dump() | {"name": target, "pool1": True, "eps": 1e-5}
        length = (frames or _CLIP) if target == "r2d" else None
        found = Recognised(validate(ModelSettings, tree, where), found.classes, length)
    return found, inflated(state, on_meta(found.settings, found.classes, found.frames))


def on_meta(settings: ModelSettings, classes: int, frames: int | None = None, size: int | None = None) -> VideoNetwork:
    """The network with names and shapes and no memory behind them."""
    with torch.device("meta"):
        return build_model(settings, classes, frames or _CLIP, size or 112)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[str], Maker]:
    """The file's tensors by our names, and what was set aside."""
    if not path.is_file():
        raise UserError("there is no such file", str(path), "check the path of the weights")
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path.suffix or 'no ending'} is no known kind of weights", str(path), f"known: {', '.join(SUFFIXES)}"
        )
    if path.suffix == ".pkl":
        return *_caffe2(path), "caffe2"
    if path.suffix == ".safetensors":
        return *_network_of(read_safetensors(path), str(path)), "pytorch"
    return *_network_of(_pytorch(path), str(path)), "pytorch"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors. Raises UserError for a damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file cannot be read: {error}", str(path), "fetch it again") from error


def _pytorch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if named:
            what = f"the file holds more than tensors ({named[1]}); nothing of it was run"
            remedy = "in a place where you trust it, save its state dict alone: torch.save(model.state_dict(), FILE)"
        else:
            first = str(error).partition("\n")[0][:200]
            what = f"the file is damaged, or no PyTorch file ({type(error).__name__}: {first})"
            remedy = "fetch it again"
        raise UserError(what, str(path), remedy) from error


def _network_of(tree: Any, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in what a trainer saved, without the names that wrappers put before it; and the rest."""
    aside: list[str] = []
    for _ in range(_DEEPEST):
        nested = next((key for key in _NESTED if isinstance(tree, dict) and isinstance(tree.get(key), dict)), None)
        if nested is not None:
            aside += [str(key) for key in tree if key != nested]
            tree = tree[nested]
    found = tree if isinstance(tree, dict) else {}
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        what = f"these are no tensors: {some(others)}" if others else "it holds no tensors by name"
        raise UserError(what, where, "save the network's state dict alone: torch.save(model.state_dict(), FILE)")
    state: dict[str, Tensor] = {str(name): value for name, value in found.items()}
    while prefix := next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value.detach().clone().contiguous() for name, value in state.items()}, aside


def _caffe2(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    tree = read_arrays(path)
    blobs = tree.get("blobs", tree) if isinstance(tree, dict) else {}
    aside = [str(key) for key in tree if key != "blobs"] if blobs is not tree and isinstance(tree, dict) else []
    if not isinstance(blobs, dict) or not blobs:
        raise UserError("the pickle holds no blobs by name", str(path), "give one of VMZ's Caffe2 .pkl files")
    aside += [str(name) for name in blobs if is_solvers(str(name))]
    arrays = {str(name): value for name, value in blobs.items() if not is_solvers(str(name))}
    others = [name for name, value in arrays.items() if not hasattr(value, "shape")]
    if others:
        raise UserError(f"these are no arrays: {some(others)}", str(path), "give one of VMZ's Caffe2 .pkl files")
    names = names_from_caffe2({name: tuple(value.shape) for name, value in arrays.items()}, str(path))
    state = {names[blob]: torch.from_numpy(value) for blob, value in arrays.items()}
    # VMZ's fully convolutional prediction keeps the classifier as a 1×1×1 convolution.
    return {name: value.flatten(1) if name == "fc.weight" else value for name, value in state.items()}, aside
