"""What torch.save wrote beside tensors: nothing in it is run, and no tensor reaches out of its storage."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.conversion.published import read_published
from pretrain.conversion.torch_archive import read_archive
from sharding.base.errors import UserError
from tests.pretrain.conversion.test_wrapped import R3D, assert_is, prefixed


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
