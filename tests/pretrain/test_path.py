"""The path a run takes: measured once, kept, and the same for every rank."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from pretrain.engine.path import evaluation_path, measure, run_path
from pretrain.engine.world import World
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import ON_CPU, PATHS
from pretrain.models.zoo import ModelSettings, build_model

ALONE = World(0, 1, torch.device("cpu"))
CLIP = (3, 4, 16, 16)


@pytest.fixture
def model() -> VideoNetwork:
    return build_model(ModelSettings(depth=10, width=0.125), 3, 4)


@pytest.mark.parametrize("half", [False, True])
def test_the_fastest_is_taken_and_kept(model: VideoNetwork, half: bool, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = run_path(tmp_path, model, CLIP, 2, half, ALONE)
    kept = json.loads((tmp_path / "path.json").read_text())
    assert kept["path"] == name and kept["half"] is half
    assert list(kept["seconds"]) == list(ON_CPU) and name == min(ON_CPU, key=kept["seconds"].__getitem__)
    assert evaluation_path(tmp_path, "auto", ALONE.device) == PATHS[name]
    assert evaluation_path(tmp_path, "planar-compiled", ALONE.device) == PATHS["planar"]
    (tmp_path / "path.json").write_text(json.dumps(kept | {"path": "planar-padded", "device": "a GPU"}))
    assert evaluation_path(tmp_path, "auto", ALONE.device) == PATHS["channels-last"]
    # The network itself took no step and saw no batch.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert not any(buffer.any() for key, buffer in model.named_buffers() if key.endswith("pending"))


def test_what_was_kept_is_taken_again_on_the_same_device(model: VideoNetwork, tmp_path: Path) -> None:
    run_path(tmp_path, model, CLIP, 2, False, ALONE)
    kept = json.loads((tmp_path / "path.json").read_text())
    slowest = max(ON_CPU, key=kept["seconds"].__getitem__)
    (tmp_path / "path.json").write_text(json.dumps(kept | {"path": slowest}))
    assert run_path(tmp_path, model, CLIP, 2, False, ALONE) == slowest
    (tmp_path / "path.json").write_text(json.dumps(kept | {"path": slowest, "device": "another"}))
    run_path(tmp_path, model, CLIP, 2, False, ALONE)
    assert json.loads((tmp_path / "path.json").read_text())["device"] == kept["device"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"path": "none such"}'])
def test_without_a_record_it_is_the_default(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "path.json").write_text(text)
    assert evaluation_path(tmp_path, "auto", ALONE.device) == PATHS["channels-last"]


def test_a_path_that_does_not_run_is_left_out(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use = VideoNetwork.use

    def failing(self: VideoNetwork, path: object) -> None:
        use(self, PATHS["plain"])
        if path == PATHS["planar"]:
            self.register_forward_pre_hook(lambda *call: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))

    monkeypatch.setattr(VideoNetwork, "use", failing)
    with caplog.at_level(logging.WARNING, "reelscale"):
        assert list(measure(model, torch.randn(2, *CLIP), False, ["plain", "planar"], 1)) == ["plain"]
        assert "planar does not run here: no compiler" in caplog.text and "at all" not in caplog.text
        with pytest.raises(RuntimeError, match="no path runs"):
            measure(model, torch.randn(2, *CLIP), False, ["planar"], 1)
