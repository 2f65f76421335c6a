"""Files of weights that are refused: not whole, not weights, or of more than tensors; nothing in them is run."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.conversion.published import read_published
from sharding.base.errors import UserError
from tests.pretrain.conversion.test_published import R3D, SMALL
from tests.support.training.published_files import random_state, video_shapes


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_pytorch_files_of_before_1_6_that_hold_more_than_tensors(tmp_path: Path) -> None:
    state = random_state(video_shapes(R3D, **{**SMALL, "stem": 0}))
    file, trace = tmp_path / "file.pth", tmp_path / "trace"
    more = {"args": argparse.Namespace(lr=0.1)}, {"extra": Attack(f"touch {trace}")}, {"model": torch.nn.ReLU()}
    for added, name in zip(
        more, ("argparse.Namespace", "posix.system", "torch.nn.modules.activation.ReLU"), strict=True
    ):
        torch.save({**state, **added}, file, _use_new_zipfile_serialization=False)
        with pytest.raises(UserError, match="more than tensors") as refused:
            read_published(file)
        assert name in refused.value.what and "state_dict" in refused.value.remedy
    assert not trace.exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"weight": torch.ones(1000)}, whole)
    for name, content, what in (
        ("cut.pth", whole.read_bytes()[:-700], "damaged"),
        ("page.pt", b"<html>not found</html>", "HTML"),
        ("page.safetensors", b"\n<!DOCTYPE html>", "HTML"),
        ("text.pkl", b"not found", "damaged"),
        ("empty.pth", b"", "empty"),
        ("cut.safetensors", b'\x40\0\0\0\0\0\0\0{"weight":', "cannot be read"),
        ("weights.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("weights.pth.gz", b"\x1f\x8b\x08\0", "gzip"),
        ("weights.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("photo.zip", b"PK\x03\x04", "damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=what):
            read_published(tmp_path / name)
    np.savez(tmp_path / "weights.npz", weight=np.ones(3))
    with pytest.raises(UserError, match=r"a zip that torch\.save did not write, of weight\.npy"):
        read_published(tmp_path / "weights.npz")
    for name, what in (("nowhere.pth", "no such file"), (".", "a folder, not a file")):
        with pytest.raises(UserError, match=what):
            read_published(tmp_path / name)


@pytest.mark.parametrize("kind", ["legacy of protocol 4", "plain", "cut"])
def test_pickles_are_refused_as_what_they_are(tmp_path: Path, kind: str) -> None:
    file, state = tmp_path / "file.pt", {"weight": torch.ones(1000)}
    if kind == "plain":
        file.write_bytes(pickle.dumps({"weight": [1.0] * 1000}, 2))
    elif kind == "cut":
        torch.save(state, file, _use_new_zipfile_serialization=False)
        file.write_bytes(file.read_bytes()[:-3000])
    else:
        torch.save(state, file, _use_new_zipfile_serialization=False, pickle_protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="is a pickle") as refused:
            read_published(file)
    assert "weights_only" not in str(refused.value) and "Re-running" not in str(refused.value)
    assert "state_dict()" in refused.value.remedy


def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "file.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="TorchScript") as refused:
            read_published(tmp_path / "file.pt")
    assert "damaged" not in refused.value.what and "state_dict()" in refused.value.remedy


def test_tensors_that_are_no_weights(tmp_path: Path) -> None:
    state = random_state(video_shapes(R3D, **{**SMALL, "stem": 0}))
    for value, kind in (
        (torch.ones(7, 64).to_sparse(), "sparse_coo"),
        (torch.ones(7, 64, dtype=torch.complex64), "complex64"),
        (torch.ones(7, 64, dtype=torch.bool), "bool"),
        (torch.ones(7, 64, dtype=torch.int32), "int32"),
        (torch.ones(7, 64, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(7, 64, device="meta"), "without values"),
        (torch.full((7, 64), torch.nan), "float32, not finite"),
        (torch.full((7, 64), -torch.inf, dtype=torch.float16), "float16, not finite"),
    ):
        torch.save(state | {"fc.weight": value}, tmp_path / "file.pth")
        with pytest.raises(UserError) as refused:
            read_published(tmp_path / "file.pth")
        assert f"1 tensors are no weights: fc.weight ({kind})" in refused.value.what
    torch.save({name: value.long() for name, value in state.items()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"102 tensors are no weights: stem.0.weight \(int64\), .*, and 94 more"):
        read_published(tmp_path / "file.pth")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halves, tmp_path / "file.pth")
    assert read_published(tmp_path / "file.pth").classes == 7
