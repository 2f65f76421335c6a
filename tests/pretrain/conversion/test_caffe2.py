"""VMZ's Caffe2 weights: their names find their places, their values count, and their pickles run nothing."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.conversion.caffe2 import names_from_caffe2
from pretrain.conversion.identify import recognise
from pretrain.conversion.published import read_published
from pretrain.conversion.safe_pickle import read_arrays
from pretrain.models.count import parameters
from pretrain.models.weights import check_weights, load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from tests.support.training.published_files import doubled, python2_pickle, random_state, vmz_shapes
from tests.support.training.published_networks import vmz_network

Blobs = dict[str, Any]


def blobs_of(kind: str, depth: int, seed: int = 0, **more: Any) -> Blobs:
    shapes = vmz_shapes(kind, depth, classes=7, planes=8, stem=6, **more)
    return {name: value.numpy() for name, value in random_state(shapes, seed).items()}


def write(path: Path, tree: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


@pytest.mark.parametrize(
    ("kind", "depth", "name"), [("2.5d", 34, "r2plus1d"), ("2.5d", 152, "r2plus1d"), ("2.5d", 18, "r2plus1d"),
                                ("3d", 18, "r3d"), ("3d", 50, "r3d")]
)  # fmt: skip
def test_the_resnets_compute_what_vmzs_compute(tmp_path: Path, kind: str, depth: int, name: str) -> None:
    blobs = blobs_of(kind, depth)
    (tmp_path / "file.pkl").write_bytes(python2_pickle({"blobs": blobs}))
    result = read_published(tmp_path / "file.pkl")
    assert result.settings == ModelSettings(name=name, depth=depth, width=1 / 8, eps=1e-3) and result.classes == 7
    model = build_model(result.settings, 7, 9).double().eval()
    load_weights(model, result.state, "keep")
    clips = torch.randn(1, 3, 9, 16, 20, dtype=torch.float64)
    theirs = doubled({name: torch.from_numpy(value) for name, value in blobs.items()})
    with torch.no_grad():
        expected = vmz_network(theirs, clips, depth)
        assert expected.std() > 1e-3
        torch.testing.assert_close(model(clips), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "depth", "channels", "name", "count"),
    [
        ("2.5d", 34, 3, "r2plus1d", 63_697_175),
        ("2.5d", 152, 3, "r2plus1d", 118_226_785),
        ("2.5d", 34, 2, "r2plus1d", None),
        ("3d", 34, 3, "r3d", 63_681_104),
        ("2d", 18, 3, "fr2d", 11_381_712),
    ],
)
def test_the_published_names_and_shapes(kind: str, depth: int, channels: int, name: str, count: int | None) -> None:
    blobs = vmz_shapes(kind, depth, 400, channels=channels)
    names = names_from_caffe2(blobs, "file")
    assert len(set(names.values())) == len(blobs)
    state = {names[blob]: torch.empty(shape, device="meta") for blob, shape in blobs.items()}
    result = recognise({name: tuple(value.shape) for name, value in state.items()}, "file", "caffe2")
    assert result.settings == ModelSettings(name=name, depth=depth, in_channels=channels)
    with torch.device("meta"):
        model = build_model(result.settings, result.classes, 16)
    check_weights(model, state, "keep")
    assert count in (None, parameters(model))


def test_places_of_some_blobs() -> None:
    names = names_from_caffe2(vmz_shapes("2.5d", 152, 400), "file")
    for blob, name in (
        ("conv1_middle_w", "stem.0.weight"),
        ("conv1_middle_spatbn_relu_riv", "stem.1.running_var"),
        ("conv1_w", "stem.3.weight"),
        ("conv1_spatbn_relu_rm", "stem.4.running_mean"),
        ("comp_0_conv_1_w", "layer1.0.conv1.0.weight"),
        ("comp_10_conv_2_middle_w", "layer2.7.conv2.0.0.weight"),
        ("comp_11_spatbn_2_middle_s", "layer3.0.conv2.0.1.weight"),
        ("comp_47_conv_2_w", "layer4.0.conv2.0.3.weight"),
        ("comp_49_spatbn_2_b", "layer4.2.conv2.1.bias"),
        ("comp_49_conv_3_w", "layer4.2.conv3.0.weight"),
        ("shortcut_projection_47_w", "layer4.0.downsample.0.weight"),
        ("shortcut_projection_0_spatbn_riv", "layer1.0.downsample.1.running_var"),
        ("last_out_L400_b", "fc.bias"),
    ):
        assert names[blob] == name


def test_c3d(tmp_path: Path) -> None:
    groups = {"1a": (3, 8), "2a": (8, 16), "3a": (16, 32), "3b": (32, 32)}
    groups |= {"4a": (32, 64), "4b": (64, 64), "5a": (64, 64), "5b": (64, 64)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in groups.items():
        shapes |= {f"conv{name}_w": (outputs, inputs, 3, 3, 3), f"conv{name}_b": (outputs,)}
        shapes |= {f"conv{name}_bn_{key}": (outputs,) for key in ("s", "b", "rm", "riv")}
    shapes |= {"fc6_w": (512, 576), "fc6_b": (512,), "fc7_w": (512, 512), "fc7_b": (512,)}
    shapes |= {"last_out_L487_w": (487, 512), "last_out_L487_b": (487,)}
    blobs = random_state(shapes)
    result = read_published(
        write(tmp_path / "c3d.pkl", {"blobs": {key: value.numpy() for key, value in blobs.items()}})
    )
    assert result.settings == ModelSettings(name="c3d", width=1 / 8)
    assert (result.classes, result.frames, result.size) == (487, 16, 112)
    model = build_model(result.settings, 487, 16, 112).eval()
    load_weights(model, result.state, "keep")
    clip = x = torch.randn(1, 3, 16, 112, 112)
    with torch.no_grad():
        for name in groups:
            x = torch.nn.functional.conv3d(x, blobs[f"conv{name}_w"], blobs[f"conv{name}_b"], padding=1)
            scale, shift, mean, variance = (blobs[f"conv{name}_bn_{key}"] for key in ("s", "b", "rm", "riv"))
            x = torch.nn.functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, 1e-3).relu()
            if name in ("1a", "2a", "3b", "4b", "5b"):
                x = torch.nn.functional.max_pool3d(x, (1, 2, 2) if name == "1a" else 2)
        x = torch.nn.functional.linear(x.flatten(1), blobs["fc6_w"], blobs["fc6_b"]).relu()
        x = torch.nn.functional.linear(x, blobs["fc7_w"], blobs["fc7_b"]).relu()
        x = torch.nn.functional.linear(x, blobs["last_out_L487_w"], blobs["last_out_L487_b"])
        torch.testing.assert_close(model(clip), x, rtol=1e-4, atol=1e-4)


def test_a_solvers_values_are_set_aside(tmp_path: Path) -> None:
    blobs = blobs_of("2.5d", 18)
    more = {"conv1_w_momentum": np.ones(3), "lr": np.float32(0.1), "model_iter": np.array([3]), "spare": 3}
    with pytest.raises(UserError, match="spare"):
        read_published(write(tmp_path / "file.pkl", {"blobs": blobs | more}))
    del more["spare"]
    found = read_published(write(tmp_path / "file.pkl", {"blobs": blobs | more, "cfg": "text"}))
    assert sorted(found.set_aside) == ["cfg", "conv1_w_momentum", "lr", "model_iter"]
    assert read_published(write(tmp_path / "bare.pkl", blobs)).settings == found.settings


def test_a_convolutional_classifier_is_the_same_classifier(tmp_path: Path) -> None:
    blobs = blobs_of("3d", 18)
    flat = read_published(write(tmp_path / "file.pkl", blobs)).state
    blobs["last_out_L7_w"] = blobs["last_out_L7_w"][..., None, None, None]
    assert torch.equal(read_published(write(tmp_path / "file.pkl", blobs)).state["fc.weight"], flat["fc.weight"])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"comp_3_conv_4_w": np.ones((8, 8, 1, 1, 1))}, ["no place", "comp_3_conv_4_w"]),
        ({"comp_8_spatbn_1_s": np.ones(8)}, ["1 blobs", "comp_8_spatbn_1_s"]),
        ({"conv1_b": np.ones(8)}, ["no place", "conv1_b"]),
        ({"last_out_L9_b": np.ones(9)}, ["2 blobs", "last_out_L9_b", "last_out_L7_b"]),
        ({"comp_03_conv_1_w": np.ones((8, 8, 1, 1, 1))}, ["no place", "comp_03_conv_1_w"]),
        ({"comp_2_spatbn_1_rm": None}, ["missing", "layer2.0.conv1.1.running_mean"]),
        ({"comp_2_spatbn_1_rm": np.ones(3)}, ["of another shape", "layer2.0.conv1.1.running_mean (3,)"]),
        ({"comp_4_conv_1_w": np.ones((32, 1, 3, 3, 3))}, ["channel-separated", "comp_4_conv_1_w"]),
        ({"comp_2_spatbn_1_rm": "text"}, ["no arrays", "comp_2_spatbn_1_rm"]),
    ],
)
def test_blobs_that_are_not_one_whole_network(tmp_path: Path, change: Blobs, parts: list[str]) -> None:
    blobs = {name: value for name, value in (blobs_of("3d", 18) | change).items() if value is not None}
    with pytest.raises(UserError) as refused:
        read_published(write(tmp_path / "file.pkl", {"blobs": blobs}))
    assert [part for part in parts if part not in refused.value.what] == [], refused.value.what


def test_pickles_of_all_ages(tmp_path: Path) -> None:
    arrays = {
        "float": np.random.default_rng(0).random((2, 3), np.float32),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "other order": np.arange(5, dtype=">i4"),
        "half": np.ones((1, 3), np.float16),
        "flags": np.array([True, False]),
        "number": np.float64(0.25),
        "none": np.array(3, np.int64),
    }
    tree = {"blobs": collections.OrderedDict(arrays), "more": [1, (2.5, "text", None, b"bytes")]}
    path = tmp_path / "file.pkl"
    for protocol in range(6):
        data = pickle.dumps(tree, protocol)
        older = data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data  # text, without a length
        for content in {data, older}:
            path.write_bytes(content)
            read = read_arrays(path)
            assert read["more"] == tree["more"] and list(read["blobs"]) == list(arrays)
            for name, array in arrays.items():
                got = read["blobs"][name]
                assert got.dtype == array.dtype.newbyteorder("=") and got.flags.writeable, name
                np.testing.assert_array_equal(got, array)
    content = python2_pickle({"blobs": {"float": arrays["float"]}})
    path.write_bytes(content)
    for read in (read_arrays(path), pickle.loads(content, encoding="latin1")):
        np.testing.assert_array_equal(read["blobs"]["float"], arrays["float"])


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_pickles_that_hold_more_than_arrays(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attacks: list[tuple[Any, str]] = [
        (Call(os.system, f"touch {trace}"), "posix.system"),
        (Call(eval, f"open({str(trace)!r}, 'w')"), "eval"),
        (Call(getattr, {}, "update"), "getattr"),
        (Call(np.load, str(trace)), "numpy.load"),
        (Call(np.fromfile, str(trace)), "numpy.fromfile"),
        (np.array([Call(os.system, f"touch {trace}")], dtype=object), "an array of object"),
        (np.array([{}], dtype=object), "an array of object"),
        (np.array(["text"]), "an array of <U4"),
        (np.zeros(2, dtype=[("a", "f4")]), "an array of |V4"),
        (np.dtype("f4"), "a type without an array"),
        (np.float32, "numpy.float32"),
        (Path("x"), "Path"),
        (torch.ones(2), "torch"),
        (Call(bytearray, 10**12), "bytearray"),
        (Call(__import__("_codecs").encode, "text", "zip"), "the codec zip"),
    ]
    for attack, named in attacks:
        for protocol in (2, 4):
            for tree in ({"blobs": {"conv1_w": attack}}, attack):
                with pytest.raises(UserError) as refused:
                    read_published(write(tmp_path / "file.pkl", tree, protocol))
                assert "more than arrays" in refused.value.what and named in refused.value.what, refused.value.what
    assert not trace.exists()


def test_old_opcodes_that_hold_more_than_arrays(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for content in (
        b"cos\nsystem\n(S'touch %b'\ntR." % str(trace).encode(),
        b"(ios\nsystem\n" + b".",
        b"(S'touch %b'\nios\nsystem\n." % str(trace).encode(),
        b"\x80\x02\x82\x01.",  # the extension registry
        b"P1\n.",  # a persistent id
        b"ccollections\nOrderedDict\n)R}S'x'\nK\x01sb.",  # a state for a dictionary
        b"cnumpy\nndarray\n}S'x'\nK\x01sb.",  # a state for a class
    ):
        (tmp_path / "file.pkl").write_bytes(content)
        with pytest.raises(UserError):
            read_published(tmp_path / "file.pkl")
    assert not trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "depth"), [("2.5d", 18), ("3d", 34), ("2.5d", 50)])
def test_a_missing_blob_is_named(tmp_path: Path, kind: str, depth: int) -> None:
    blobs = blobs_of(kind, depth)
    names = names_from_caffe2({blob: value.shape for blob, value in blobs.items()}, "file")
    unnamed = []
    some = ("conv1", "comp_0_", "comp_3_", "shortcut_projection_3", "last_out")
    for blob in (blob for blob in blobs if blob.startswith(some)):
        file = write(tmp_path / "file.pkl", {name: value for name, value in blobs.items() if name != blob})
        with pytest.raises(UserError) as refused:
            read_published(file)
        parts = f"1 missing ({names[blob]})", f"in the file's names: {blob}"
        if any(part not in refused.value.what for part in parts):
            unnamed.append((blob, refused.value.what))
    assert unnamed == []


def test_a_missing_blob_of_c3d_is_named(tmp_path: Path) -> None:
    groups = {"1a": (3, 1), "2a": (1, 2), "3a": (2, 4), "3b": (4, 4), "4a": (4, 8), "4b": (8, 8)}
    blobs: Blobs = {}
    for name, (inputs, outputs) in (groups | {"5a": (8, 8), "5b": (8, 8)}).items():
        blobs |= {f"conv{name}_w": np.ones((outputs, inputs, 3, 3, 3)), f"conv{name}_b": np.ones(outputs)}
        blobs |= {f"conv{name}_bn_{key}": np.ones(outputs) for key in ("s", "b", "rm", "riv")}
    blobs |= {"fc6_w": np.ones((64, 72)), "fc6_b": np.ones(64), "fc7_w": np.ones((64, 64)), "fc7_b": np.ones(64)}
    blobs |= {"last_out_L5_w": np.ones((5, 64)), "last_out_L5_b": np.ones(5)}
    assert read_published(write(tmp_path / "file.pkl", blobs)).settings == ModelSettings(name="c3d", width=1 / 64)
    for blob, name in (
        ("conv1a_w", "conv1.0.weight"),
        ("conv5b_bn_riv", "conv5.3.running_var"),
        ("fc6_w", "fc6.weight"),
    ):
        rest = {key: value for key, value in blobs.items() if key != blob}
        with pytest.raises(UserError, match=rf"1 missing \({name}\).* in the file's names: {blob}"):
            read_published(write(tmp_path / "file.pkl", rest))


def test_blobs_that_are_no_weights(tmp_path: Path) -> None:
    blobs = blobs_of("3d", 18)
    for value, kind in (
        (np.ones((7, 64), np.complex64), "complex64"),
        (np.ones((7, 64), bool), "bool"),
        (np.ones((7, 64), np.int32), "int32"),
        (np.ones((7, 64), np.longdouble), str(np.dtype(np.longdouble))),
        (np.full((7, 64), np.nan, np.float32), "float32, not finite"),
        (np.full((7, 64), np.inf), "float64, not finite"),
    ):
        with pytest.raises(UserError) as refused:
            read_published(write(tmp_path / "file.pkl", blobs | {"last_out_L7_w": value}))
        assert f"1 tensors are no weights: last_out_L7_w ({kind})" in refused.value.what
