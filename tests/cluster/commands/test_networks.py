"""`reelscale import` and `export`: what they print, and that every mistake ends with exit code 2."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.conftest import Say
from tests.support.commands import refused, succeeded
from tests.support.training.published_files import image_shapes, random_state, video_shapes


@pytest.fixture(autouse=True)
def _files(say: Say) -> None:
    """Files of weights in the folder of the command line: r3d.pth and resnet.pth."""
    torch.save(random_state(video_shapes(("3d",) * 4, classes=3, planes=8)), "r3d.pth")
    torch.save(random_state(image_shapes(18, planes=8)), "resnet.pth")


def test_in_and_out(say: Say) -> None:
    Path("names.txt").write_text("run\njump\nfall\n")
    said = succeeded(say("import", "r3d.pth", "runs/mine", "--classes", "names.txt")).stdout
    for part in ("model.name=r3d model.depth=18", "model.eps=1e-05", "names.txt", "16 frames are assumed"):
        assert part in said
    said = succeeded(say("export", "runs/mine", "mine.safetensors")).stdout
    assert "mine.safetensors" in said and "classes                3" in said
    network = json.loads(succeeded(say("import", "mine.safetensors", "runs/back", "--json")).stdout)
    assert network["model"] == {"name": "r3d", "depth": 18, "width": 0.125, "eps": 1e-05} and network["notes"] == []
    assert json.loads(Path("runs/back/classes.json").read_text()) == ["run", "jump", "fall"]
    network = json.loads(succeeded(say("export", "runs/back", "back.safetensors", "--json")).stdout)
    assert network["bytes"] == Path("back.safetensors").stat().st_size
    said = succeeded(say("import", "resnet.pth", "runs/flat", "--inflate", "mc3", "--frames", "8")).stdout
    assert "model.name=mc3" in said and "model.pool1=True" in said and "8 frames of 224" in said
    assert "class-000" in said and "data.clip.normalisation.mean=[0.485,0.456,0.406]" in said


class Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch trace",)


def test_mistakes(say: Say) -> None:
    Path("two.txt").write_text("run\njump\n")
    Path("taken").mkdir()
    Path("taken/file").touch()
    Path("attack.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": Attack()}}))
    torch.save({"conv1.weight": torch.ones(1)}, "other.pth")
    state = random_state(video_shapes(("3d",) * 4, classes=3, planes=8))
    torch.save(state | {"spare": torch.ones(1)}, "left.pth")
    before = sorted(path.name for path in Path().iterdir())
    for arguments, parts in (
        (("import", "nowhere.pth", "run"), ["no such file", "nowhere.pth"]),
        (("import", "other.pth", "run"), ["no network that is known", "conv1.weight"]),
        (("import", "left.pth", "run"), ["1 unexpected", "spare"]),
        (("import", "attack.pkl", "run"), ["more than arrays", "posix.system"]),
        (("import", "r3d.pth", "taken"), ["something already", "taken"]),
        (("import", "r3d.pth", "run", "--classes", "two.txt"), ["2 class names", "3 classes", "two.txt"]),
        (("import", "r3d.pth", "run", "--classes", "nowhere.txt"), ["cannot be read", "nowhere.txt"]),
        (("import", "r3d.pth", "run", "--inflate", "r3d"), ["not a 2D network's"]),
        (("import", "resnet.pth", "run"), ["must become a video network", "--inflate"]),
        (("import", "resnet.pth", "run", "--inflate", "r2plus1d"), ["cannot be inflated into r2plus1d"]),
        (("export", "nowhere", "file.safetensors"), ["not a run's folder", "nowhere"]),
        (("export", "taken", "file.safetensors"), ["not a run's folder", "taken"]),
    ):
        refused(say(*arguments), *parts)
    assert say("import", "r3d.pth", "run", "--frames", "0").returncode == 2
    assert say("import", "r3d.pth").returncode == 2
    assert sorted(path.name for path in Path().iterdir()) == before
