"""Networks in what trainers save: found behind any wrapper's names, whatever the file is called, and nothing is run."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pretrain.conversion.published import read_published
from pretrain.models.weights import load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from tests.support.training.published_files import (
    doubled,
    i3d_shapes,
    random_state,
    video_shapes,
    vmz_shapes,
)
from tests.support.training.published_networks import video_network

R3D = random_state(video_shapes(("3d",) * 4, classes=3, planes=2))
OTHER = random_state(video_shapes(("3d",) * 4, classes=3, planes=2), seed=1)
R2PLUS1D = random_state(video_shapes(("2+1",) * 4, classes=5, planes=8, stem=6))
I3D = random_state(i3d_shapes(classes=4, part=16))
C3D = build_model(ModelSettings(name="c3d", width=1 / 64), 3, 16).state_dict()
NETWORKS = {"r3d": R3D, "r2plus1d": R2PLUS1D, "i3d": I3D, "c3d": C3D}
ENDINGS = (".ckpt", ".pyth", ".tar", ".bin", ".pth.tar", ".pt", ".pkl", ".safetensors", ".weights", "")


def assert_is(file: Path, state: dict[str, Tensor]) -> None:
    """The file's network is this one, bit by bit."""
    found = read_published(file).state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def logits(file: Path, clips: Tensor) -> Tensor:
    """What the file's network computes in float64."""
    found = read_published(file)
    model = build_model(found.settings, found.classes, clips.shape[2]).double().eval()
    load_weights(model, found.state, "keep")
    with torch.no_grad():
        return model(clips)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors with their names' beginnings changed: the first that fits."""

    def other(name: str) -> str:
        old = next((old for old in names if name.startswith(old)), "")
        return names.get(old, "") + name.removeprefix(old)

    return {other(name): value for name, value in state.items()}


WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIXES = ("model", "net", "network", "backbone", "encoder", "student", "video_model", "r3d", "0", *WRAPPERS)
CONTAINERS = ("state_dict", "model", "model_state", "model_state_dict", "net", "module", "ema_model", "module_ema", "w")


@st.composite
def wrappings(draw: st.DrawFn, name: str) -> str:
    """The name with wrappers' names in it, but not behind its last part."""
    parts = name.split(".")
    for wrapper in draw(st.lists(st.sampled_from(WRAPPERS), max_size=2)):
        parts.insert(draw(st.integers(0, len(parts) - 1)), wrapper)
    return ".".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_network_is_found_behind_any_prefix(tmp_path: Path, name: str, data: st.DataObject) -> None:
    network = NETWORKS[name]
    before = "".join(f"{part}." for part in data.draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    wrapped = [data.draw(wrappings(name)) for name in list(network)[:6]]
    names = [before + name for name in (*wrapped, *list(network)[6:])]
    tree: dict[str, Any] = dict(zip(names, network.values(), strict=True))
    containers = data.draw(st.lists(st.sampled_from(CONTAINERS), max_size=2))
    file = tmp_path / f"file{data.draw(st.sampled_from(ENDINGS))}"
    if not containers and data.draw(st.booleans()):
        save_file(tree, file)
    else:
        for container in containers:
            tree = {container: tree, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
        torch.save(tree, file)
    assert_is(file, network)


class Config:
    """A class of someone's, as hyper-parameters are of; it notices when it is made."""

    made = 0

    def __init__(self, **content: Any) -> None:
        self.__dict__.update(content)

    def __reduce__(self) -> tuple[Any, ...]:
        return Config.build, (1,), self.__dict__, iter([1]), iter([("a", 2)])

    @staticmethod
    def build(number: int) -> Config:
        Config.made += 1
        return Config()


class Listed(list[Any]):
    """A list with attributes, as hyper-parameters have."""


def lightnings(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of Lightning with what its users' hyper-parameters hold."""
    momenta = {number: {"exp_avg": torch.ones(3), "step": torch.tensor(7.0)} for number in range(3)}
    listed = Listed([1])
    listed.extra = {1: 2}  # type: ignore[attr-defined]
    return {
        "epoch": 3,
        "global_step": 700,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": PurePosixPath("/runs")}},
        "optimizer_states": [{"state": momenta, "param_groups": [{"lr": 0.1, "params": [0, 1, 2]}]}],
        "lr_schedulers": [{"_last_lr": [np.float64(0.1)], "base": defaultdict(list, {"a": [1]})}],
        "hparams_name": "hparams",
        "hyper_parameters": {
            "args": argparse.Namespace(lr=0.1),
            "config": Config(a={"b": listed}),
            "arrays": np.arange(3),
            "device": torch.device("cpu"),
            "class": Config,
            "function": os.path.join,
            "slice": slice(1, 2),
        },
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_lightnings_checkpoints_compute_what_their_networks_compute(tmp_path: Path, protocol: int) -> None:
    file, clips = tmp_path / "epoch=3-step=700.ckpt", torch.randn(1, 3, 8, 16, 20, dtype=torch.float64)
    beside = {"criterion.weight": torch.ones(5), "train_acc.tp": torch.ones(5).long()}
    torch.save(lightnings({**prefixed(R2PLUS1D, "model."), **beside}), file, pickle_protocol=protocol)
    result = read_published(file)
    assert result.settings == ModelSettings(depth=18, width=1 / 8, midplanes="block", eps=1e-5)
    assert {"hyper_parameters", "optimizer_states", "criterion.weight", "train_acc.tp"} <= set(result.set_aside)
    assert "the network is the file's state_dict.model.*" in result.notes
    assert any("argparse.Namespace" in note for note in result.notes) and not Config.made
    torch.testing.assert_close(logits(file, clips), video_network(doubled(R2PLUS1D), clips, 1e-5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "names",
    [
        {"fc.": "cls_head.fc_cls.", "": "backbone."},
        {"fc.": "model.head.", "": "model.backbone."},
        {"fc.": "classifier.1.", "": "encoder.module."},
        {"fc.": "net.fc.1.", "": "net."},
        {"fc.": "head.proj."},
    ],
    ids=lambda names: names["fc."],
)
def test_a_classifier_of_another_name(tmp_path: Path, names: dict[str, str]) -> None:
    file, clips = tmp_path / "file.pth", torch.randn(1, 3, 8, 16, 20, dtype=torch.float64)
    torch.save({"meta": {"epoch": 1}, "state_dict": renamed(R2PLUS1D, names)}, file)
    assert names["fc."].removesuffix(".").removeprefix("net.") in " ".join(read_published(file).notes)
    torch.testing.assert_close(logits(file, clips), video_network(doubled(R2PLUS1D), clips, 1e-5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("added", "parts"),
    [
        ({"neck.weight": torch.ones(16, 16)}, ["beside the network state_dict.backbone.*", "neck.weight"]),
        ({"norm.running_mean": torch.ones(16)}, ["beside the network", "norm.running_mean"]),
        ({"semantic_head.weight": torch.ones(2, 3)}, ["beside the network", "semantic_head.weight"]),
        (prefixed(OTHER, "teacher."), ["2 networks", "state_dict.teacher.*"]),
        ({"backbone.module.fc.bias": torch.ones(3)}, ["two tensors are backbone.fc.bias"]),
        ({"backbone.fc.weight": 3}, ["no tensors", "backbone.fc.weight"]),
    ],
    ids=["neck", "norm", "head", "teacher", "twice", "number"],
)  # fmt: skip
def test_what_would_be_another_network_is_refused(tmp_path: Path, added: dict[str, Any], parts: list[str]) -> None:
    torch.save({"state_dict": prefixed(R3D, "backbone.") | added}, tmp_path / "file.ckpt")
    with pytest.raises(UserError) as refused:
        read_published(tmp_path / "file.ckpt")
    assert [part for part in parts if part not in refused.value.what] == [], refused.value.what


def test_of_two_classifiers_none_is_taken(tmp_path: Path) -> None:
    state = prefixed({name: value for name, value in R3D.items() if not name.startswith("fc.")}, "backbone.")
    for added in (
        {"head.0.weight": torch.ones(8, 16), "head.0.bias": torch.ones(8), "head.2.weight": torch.ones(3, 8)},
        {"head.norm.weight": torch.ones(16), "head.fc.weight": torch.ones(3, 16), "head.fc.bias": torch.ones(3)},
    ):
        torch.save(state | added, tmp_path / "file.ckpt")
        with pytest.raises(UserError, match="head"):
            read_published(tmp_path / "file.ckpt")


def test_of_a_network_and_its_average_it_is_the_network(tmp_path: Path) -> None:
    average, file = OTHER, tmp_path / "file.pth"
    for tree, aside in (
        (prefixed(R3D, "model.") | prefixed(average, "ema_model.module.") | {"ema_model.n_averaged": torch.tensor(3)},
         ["ema_model.*"]),
        ({"model": R3D, "model_ema": prefixed(average, "module."), "args": argparse.Namespace(lr=1)},
         ["model_ema", "args"]),
        (prefixed(R3D, "model.") | prefixed(R3D, "net."), ["net.*"]),
        (prefixed(R3D, "model.") | {"model_ema.stem0weight": torch.ones(3), "model_ema.decay": torch.tensor(0.9)},
         ["model_ema.stem0weight", "model_ema.decay"]),
    ):  # fmt: skip
        torch.save(tree, file)
        assert_is(file, R3D)
        assert read_published(file).set_aside == aside
    for tree in (
        {"module_ema": average, "epoch": 1},
        {"n_averaged": torch.tensor(3), **prefixed(average, "module.")},
        {"state_dict": prefixed(average, "ema_model.")},
    ):
        torch.save(tree, file)
        assert_is(file, average)


def test_dictionaries_that_hold_each_other(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"model": {**R3D, "again": None}}
    tree["model"]["again"] = tree["more"] = tree
    torch.save(tree, tmp_path / "file.pth")
    assert_is(tmp_path / "file.pth", R3D)


def test_networks_that_cannot_be_compared_are_two(tmp_path: Path) -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in R3D.items()}
    for other in (halves, {name: value.to("meta") for name, value in R3D.items()}):
        torch.save({"model": R3D, "net": other}, tmp_path / "file.pth")
        with pytest.raises(UserError, match="2 networks"):
            read_published(tmp_path / "file.pth")


def test_optimizers_that_name_their_states_are_no_networks(tmp_path: Path) -> None:
    for key in ("optimizer", "optim_state_dict"):
        torch.save(
            {"net": R3D, key: {"momentum": R3D, "state": {f"{name}": value for name, value in R3D.items()}}},
            tmp_path / "x",
        )
        assert read_published(tmp_path / "x").set_aside == [key]


def test_a_module_saved_whole_is_refused(tmp_path: Path) -> None:
    for tree in (torch.nn.Linear(2, 3), {"model": torch.nn.Linear(2, 3), "epoch": 1}):
        torch.save(tree, tmp_path / "model.pt")
        with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear; nothing of it was run") as refused:
            read_published(tmp_path / "model.pt")
        assert "state_dict()" in refused.value.remedy


def test_what_fsdp_has_taken_apart_is_refused_with_what_to_save(tmp_path: Path) -> None:
    torch.save({"_fsdp_wrapped_module._flat_param": torch.ones(100)}, tmp_path / "file.pt")
    with pytest.raises(UserError, match="flat_param") as refused:
        read_published(tmp_path / "file.pt")
    assert "full_state_dict" in refused.value.remedy


def test_caffe2s_pickles_are_known_by_what_they_hold(tmp_path: Path) -> None:
    blobs = {name: value.numpy() for name, value in random_state(vmz_shapes("2.5d", 18, 6, planes=8, stem=6)).items()}
    for name in ("r2.5d.bin", "r2.5d.pth", "weights"):
        for protocol in (0, 2, 4):
            (tmp_path / name).write_bytes(pickle.dumps({"blobs": blobs}, protocol))
            assert read_published(tmp_path / name).settings == ModelSettings(depth=18, width=1 / 8)
