"""Networks in what trainers save: found behind any wrapper's names, whatever the file is called, and nothing is run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
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
from pretrain.conversion.torch_archive import read_archive
from pretrain.models.weights import load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from tests.support.training.published_files import (
    Shapes,
    doubled,
    i3d_shapes,
    image_network,
    image_shapes,
    random_state,
    video_network,
    video_shapes,
    vmz_shapes,
)

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
    found = read_published(file)
    assert found.settings == ModelSettings(depth=18, width=1 / 8, midplanes="block", eps=1e-5)
    assert {"hyper_parameters", "optimizer_states", "criterion.weight", "train_acc.tp"} <= set(found.set_aside)
    assert "the network is the file's state_dict.model.*" in found.notes
    assert any("argparse.Namespace" in note for note in found.notes) and not Config.made
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


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def test_programs_in_a_file_are_not_run(tmp_path: Path) -> None:
    file, trace = tmp_path / "file.ckpt", tmp_path / "trace"
    for call, named in (
        ((os.system, f"touch {trace}"), "posix.system"),
        ((exec, f"open({str(trace)!r}, 'w')"), "builtin__.exec"),
        ((open, str(trace), "w"), None),
        ((__import__, "this"), None),
        ((torch.load, str(file)), None),
    ):
        torch.save({"state_dict": prefixed(R3D, "model."), "hyper_parameters": Attack(*call)}, file)
        if named:
            with pytest.raises(UserError, match="more than tensors") as refused:
                read_published(file)
            assert named in refused.value.what
        else:
            assert_is(file, R3D)
    assert not trace.exists()


def crafted(file: Path, program: bytes, storage: bytes = bytes(40)) -> Path:
    """A file of torch.save's format whose pickle is this program."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", "3")
    return file


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\ntQ"
BUILDER = b"ctorch._utils\n_rebuild_tensor_v2\n"


def test_no_pickle_changes_how_the_next_one_is_read(tmp_path: Path) -> None:
    slots = b"N}X\x07\0\0\0__new__K\x01s\x86b"  # BUILD of what is below it, with the attribute __new__
    for target in (BUILDER, b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n", b"cx\ny\n"):
        read_archive(crafted(tmp_path / "attack.pt", b"\x80\x02" + target + slots + b"."))
    tree, foreign = read_archive(
        crafted(tmp_path / "file.pt", b"\x80\x02" + BUILDER + b"(" + STORAGE + b"K\0K\x05\x85K\x01\x85\x89}tR.")
    )
    assert torch.equal(tree, torch.zeros(5)) and not foreign


@pytest.mark.parametrize(
    "shape",
    [
        b"K\0K\x0b\x85K\x01\x85",
        b"K\0M\xff\xff\x85K\0\x85",
        b"K\x08K\x05\x85K\x01\x85",
        b"J\xff\xff\xff\xffK\x05\x85K\x01\x85",
    ],
    ids=["longer", "repeated", "beyond", "before"],
)  # fmt: skip
def test_tensors_that_reach_out_of_their_storage(tmp_path: Path, shape: bytes) -> None:
    program = b"\x80\x02" + BUILDER + b"(" + STORAGE + shape + b"\x89}tR."
    with pytest.raises(UserError, match="damaged"):
        read_archive(crafted(tmp_path / "file.pt", program))


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


def convmodules(inputs: int, outputs: int, kernel: tuple[int, int, int], name: str, factored: bool) -> Shapes:
    """mmcv's ConvModule, of Conv3d or mmaction2's Conv2plus1d."""

    def norm(name: str, planes: int) -> Shapes:
        kept = {f"{name}.{key}": (planes,) for key in ("weight", "bias", "running_mean", "running_var")}
        return kept | {f"{name}.num_batches_tracked": ()}

    time, side, _ = kernel
    if not factored:
        return {f"{name}.conv.weight": (outputs, inputs, *kernel)} | norm(f"{name}.bn", outputs)
    middle = int(3 * inputs * outputs * side * side / (inputs * side * side + 3 * outputs))
    spatial = {f"{name}.conv.conv_s.weight": (middle, inputs, 1, side, side)} | norm(f"{name}.conv.bn_s", middle)
    return spatial | {f"{name}.conv.conv_t.weight": (outputs, middle, time, 1, 1)} | norm(f"{name}.bn", outputs)


def mmaction2_shapes(factored: bool, planes: int = 64, classes: int = 400) -> Shapes:
    """mmaction2's ResNet2Plus1d or ResNet3d of depth 18, in a Recognizer3D with I3DHead."""
    shapes, inputs = convmodules(3, planes, (3, 7, 7), "backbone.conv1", factored), planes
    for stage in range(4):
        outputs = planes * 2**stage
        for block in range(2):
            name = f"backbone.layer{stage + 1}.{block}"
            shapes |= convmodules(inputs, outputs, (3, 3, 3), f"{name}.conv1", factored)
            shapes |= convmodules(outputs, outputs, (3, 3, 3), f"{name}.conv2", factored)
            if inputs != outputs:
                shapes |= convmodules(inputs, outputs, (1, 1, 1), f"{name}.downsample", factored)
            inputs = outputs
    return shapes | {"cls_head.fc_cls.weight": (classes, inputs), "cls_head.fc_cls.bias": (classes,)}


def test_mmaction2s_video_networks_are_refused_with_what_differs(tmp_path: Path) -> None:
    r2plus1d, r3d = random_state(mmaction2_shapes(True)), random_state(mmaction2_shapes(False, 8))
    c3d = {"backbone.conv1a.conv.weight": torch.ones(64, 3, 3, 3, 3), "backbone.conv1a.conv.bias": torch.ones(64)}
    c3d |= {"backbone.fc6.weight": torch.ones(2, 8192), "cls_head.fc_cls.weight": torch.ones(3, 2)}
    for state, parts in (
        (r2plus1d, ["mmaction2's R(2+1)D", "83 mid-planes", "layer2.0.downsample", "pools after the stem", "eps"]),
        (r3d, ["mmaction2's ResNet3d", "no weight tells"]),
        (c3d | {"cls_head.fc_cls.bias": torch.ones(3)}, ["mmaction2's C3D", "8192", "no batch normalisation"]),
    ):  # fmt: skip
        torch.save({"meta": {"cfg": "model = dict()"}, "state_dict": state}, tmp_path / "epoch_180.pth")
        with pytest.raises(UserError) as refused:
            read_published(tmp_path / "epoch_180.pth")
        assert [part for part in parts if part not in refused.value.what] == [], refused.value.what
        assert "ig65m" in refused.value.remedy


def test_mmaction2s_2d_resnet_is_torchvisions(tmp_path: Path) -> None:
    state = random_state(image_shapes(50, classes=4, planes=8))
    theirs = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[-2].startswith(("conv", "bn")):
            parts[-2:] = [f"conv{parts[-2][-1]}", parts[-2][:-1], parts[-1]]
        elif parts[-3:-2] == ["downsample"]:
            parts[-2] = ("conv", "bn")[int(parts[-2])]
        theirs["cls_head.fc_cls." + parts[-1] if name.startswith("fc.") else "backbone." + ".".join(parts)] = value
    torch.save({"state_dict": theirs, "meta": {}}, tmp_path / "tsn.pth")
    found = read_published(tmp_path / "tsn.pth", inflate="fr2d")
    assert found.flat and found.settings == ModelSettings(name="fr2d", depth=50, width=1 / 8, pool1=True, eps=1e-5)
    model = build_model(found.settings, found.classes, 8).double().eval()
    load_weights(model, found.state, "keep")
    images = torch.randn(1, 3, 32, 40, dtype=torch.float64)
    with torch.no_grad():
        ours = model(images.unsqueeze(2).expand(1, 3, 8, 32, 40))
    torch.testing.assert_close(ours, image_network(doubled(state), images)[1], rtol=1e-9, atol=1e-9)


def test_caffe2s_pickles_are_known_by_what_they_hold(tmp_path: Path) -> None:
    blobs = {name: value.numpy() for name, value in random_state(vmz_shapes("2.5d", 18, 6, planes=8, stem=6)).items()}
    for name in ("r2.5d.bin", "r2.5d.pth", "weights"):
        for protocol in (0, 2, 4):
            (tmp_path / name).write_bytes(pickle.dumps({"blobs": blobs}, protocol))
            assert read_published(tmp_path / name).settings == ModelSettings(depth=18, width=1 / 8)
