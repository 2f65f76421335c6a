"""The path a run takes: measured once, kept, and the same for every rank."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from pretrain.engine import measure as measuring
from pretrain.engine.measure import measure, planar_layers
from pretrain.engine.path import evaluation_path, fits, run_path
from pretrain.engine.precision import Pass, Precision
from pretrain.engine.world import World
from pretrain.models.batchnorm import LaneBatchNorm, commit_statistics
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import ON_CPU, PATHS, Convolution
from pretrain.models.zoo import ModelSettings, build_model
from sharding.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))
CLIP = (3, 4, 16, 16)
FP32 = Pass(CLIP, 2, "fp32")


@pytest.fixture
def model() -> VideoNetwork:
    torch.manual_seed(0)
    return build_model(ModelSettings(depth=10, width=0.125), 3, 4)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_fastest_is_taken_and_kept(model: VideoNetwork, precision: Precision, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = run_path(tmp_path, model, Pass(CLIP, 2, precision), ALONE)
    kept = json.loads((tmp_path / "path.json").read_text())
    rates = kept["clips_per_second"]
    assert kept["precision"] == precision and list(rates) == list(ON_CPU)
    assert kept["path"] == max(ON_CPU, key=rates.__getitem__)
    layers = {name for name, layer in model.named_modules() if isinstance(layer, Convolution)}
    assert set(kept["planar"]) <= layers
    whole = PATHS[kept["path"]]
    assert path == (replace(whole, planar=frozenset(kept["planar"])) if whole.planar else whole)
    # The network itself took no step and saw no batch.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert not any(buffer.any() for key, buffer in model.named_buffers() if key.endswith("pending"))


def test_what_was_kept_is_taken_again_on_the_same_device(model: VideoNetwork, tmp_path: Path) -> None:
    run_path(tmp_path, model, FP32, ALONE)
    kept = json.loads((tmp_path / "path.json").read_text())
    known = kept | {"path": "planar", "planar": ["stem.0"]}
    (tmp_path / "path.json").write_text(json.dumps(known))
    assert run_path(tmp_path, model, FP32, ALONE).planar == frozenset({"stem.0"})
    for other in ({"device": "another"}, {"path": "none such"}, {"precision": "bf16"}, {"batch": 4}, {"more": 1}):
        (tmp_path / "path.json").write_text(json.dumps(known | other))
        run_path(tmp_path, model, FP32, ALONE)
        assert json.loads((tmp_path / "path.json").read_text()).keys() == kept.keys()
        assert json.loads((tmp_path / "path.json").read_text())["device"] == "cpu"


def test_evaluation_takes_the_runs_path_on_the_same_device(tmp_path: Path) -> None:
    known = {
        "path": "planar",
        "planar": ["stem.0"],
        "recomputed": 0,
        "device": "cpu",
        "batch": 2,
        "precision": "fp32",
        "clips_per_second": {"planar": 1},
    }
    (tmp_path / "path.json").write_text(json.dumps(known))
    assert evaluation_path(tmp_path, "auto", ALONE.device).planar == frozenset({"stem.0"})
    assert evaluation_path(tmp_path, "plain", ALONE.device) == PATHS["plain"]
    (tmp_path / "path.json").write_text(json.dumps(known | {"device": "a GPU"}))
    assert evaluation_path(tmp_path, "auto", ALONE.device) == PATHS["channels-last"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"path": "none such"}'])
def test_without_a_record_it_is_the_default(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "path.json").write_text(text)
    assert evaluation_path(tmp_path, "auto", ALONE.device) == PATHS["channels-last"]


def test_layers_are_planar_where_that_is_faster(model: VideoNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def faster(layer: Convolution, given: torch.Tensor, needs_gradient: bool, precision: str, repeats: int) -> bool:
        asked.append((layer.kernel_size, layer.stride, layer.out_channels, tuple(given.shape), needs_gradient))
        return layer.kernel_size == (3, 1, 1)

    monkeypatch.setattr(measuring, "_faster_planar", faster)
    found = planar_layers(model, torch.randn(2, *CLIP), "fp16")
    assert found == {name for name, layer in model.named_modules() if getattr(layer, "kernel_size", 0) == (3, 1, 1)}
    assert asked[0] == ((1, 7, 7), (1, 2, 2), 6, (2, *CLIP), False) and all(needs for *_, needs in asked[1:])
    # Layers of a kind are measured once.
    assert len(asked) == len(set(asked)) < sum(isinstance(layer, Convolution) for layer in model.modules())
    monkeypatch.undo()
    assert planar_layers(model, torch.randn(2, *CLIP), "bf16", repeats=1) <= {
        name for name, layer in model.named_modules() if isinstance(layer, Convolution)
    }


def test_a_whole_3d_convolution_has_no_planar_form() -> None:
    model = build_model(ModelSettings(name="r3d", depth=10, width=0.125), 3, 4)
    flat = {name for name, layer in model.named_modules() if isinstance(layer, Convolution) and layer.flat}
    assert flat == {f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)} - {
        name for name, layer in model.named_modules() if getattr(layer, "stride", 0) == (1, 1, 1)
    }


def test_a_path_that_does_not_run_is_left_out(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use = VideoNetwork.use

    def failing(self: VideoNetwork, path: object) -> None:
        use(self, PATHS["plain"])
        if path == PATHS["planar"]:
            self.register_forward_pre_hook(lambda *call: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))

    monkeypatch.setattr(VideoNetwork, "use", failing)
    clips = torch.randn(2, *CLIP)
    with caplog.at_level(logging.WARNING, "reelscale"):
        both = {name: PATHS[name] for name in ("plain", "planar")}
        assert list(measure(model, clips, "fp32", both, 1)) == ["plain"]
        assert "planar does not run here: no compiler" in caplog.text and "at all" not in caplog.text
        with pytest.raises(RuntimeError, match="no path runs"):
            measure(model, clips, "fp32", {"planar": PATHS["planar"]}, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("wrong", [lambda weight: weight.flip(-1), lambda weight: weight * float("nan")])
def test_a_path_that_computes_wrongly_is_left_out(
    wrong: Callable[[Tensor], Tensor],
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a GPU's library did with (1,3,3) convolutions in bf16."""
    torch.manual_seed(0)
    model = build_model(ModelSettings(depth=10, width=0.125, dropout=dropout), 3, 4)
    sound = Convolution._over_pictures
    monkeypatch.setattr(Convolution, "_over_pictures", lambda self, x, weight: sound(self, x, wrong(weight)))
    paths = {name: PATHS[name] for name in ("planar", "plain", "channels-last")}
    with caplog.at_level(logging.WARNING, "reelscale"):
        assert set(measure(model, torch.randn(8, 3, 4, 32, 32), "bf16", paths, 1)) == {"plain", "channels-last"}
    assert "the path planar computes wrongly here" in caplog.text


@pytest.mark.parametrize("rates", [{"stem": 0}, {"stem": 0, "stages": 0}, {"conv3": 0}])
def test_a_network_with_frozen_parts_is_measured(rates: dict[str, float], tmp_path: Path, model: VideoNetwork) -> None:
    freeze(model, rates)
    run_path(tmp_path, model, FP32, ALONE)
    assert set(json.loads((tmp_path / "path.json").read_text())["clips_per_second"]) == set(ON_CPU)


def test_a_network_that_diverged_is_measured(model: VideoNetwork, caplog: pytest.LogCaptureFixture) -> None:
    """What its logits should be, nobody can tell."""
    torch.nn.init.constant_(model.get_submodule("fc").weight, float("nan"))
    assert set(measure(model, torch.randn(2, *CLIP), "fp32", {"plain": PATHS["plain"]}, 1)) == {"plain"}
    assert "wrongly" not in caplog.text


def test_lanes_normalised_together_are_measured_so(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def noted(network: VideoNetwork, *given: object, **named: object) -> dict[str, float]:
        seen.append(all(layer.gather for layer in network.modules() if isinstance(layer, LaneBatchNorm)))
        return {"plain": 1.0}

    monkeypatch.setattr("pretrain.engine.path.measure", noted)
    for together in (False, True):
        run_path(tmp_path, model, Pass(CLIP, 2, "fp32", together=together), ALONE)
        (tmp_path / "path.json").unlink()
    assert seen == [False, True]
    assert not any(layer.gather for layer in model.modules() if isinstance(layer, LaneBatchNorm))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
    ],
)
def test_clips_that_do_not_fit_are_computed_twice(
    error: Exception, model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward = VideoNetwork.forward

    def short(self: VideoNetwork, clips: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and self.path.recomputed < needed:
            raise error
        return forward(self, clips)

    monkeypatch.setattr(VideoNetwork, "forward", short)
    needed = 2
    assert run_path(tmp_path, model, FP32, ALONE).recomputed == 2
    assert run_path(tmp_path, model, FP32, ALONE, recomputed=3).recomputed == 3
    with pytest.raises(UserError, match=r"(?s)2 clips of 4 frames of 16² .* not fit.*engine.recomputed=5"):
        run_path(tmp_path, model, FP32, ALONE, recomputed=1)
    needed = 6
    (tmp_path / "path.json").unlink()
    with pytest.raises(UserError, match=r"(?s)does not fit.*fewer clips a lane"):
        run_path(tmp_path, model, FP32, ALONE)
    assert not (tmp_path / "path.json").exists()


def test_a_dry_batch_leaves_nothing(model: VideoNetwork) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fits(model.eval(), Pass(CLIP, 2, "bf16"), torch.device("cpu"))
    assert all(value.grad is None for value in model.parameters()) and not model.training
    commit_statistics(model)  # of no lane
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("groups", "remedy"), [(1, "engine.recomputed=5"), (5, "fewer clips a lane")])
def test_a_dry_batch_that_does_not_fit(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, groups: int, remedy: str
) -> None:
    def short(self: VideoNetwork, clips: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VideoNetwork, "forward", short)
    model.use(replace(model.path, recomputed=groups))
    with pytest.raises(UserError, match=f"(?s)2 clips of 4 frames of 16² .* not fit.*{remedy}") as caught:
        fits(model, FP32, torch.device("cpu"))
    assert ("recomputed" in caught.value.remedy) is (groups < len(model.stages))


def test_a_layer_that_does_not_fit_is_a_mistake_of_the_settings(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def short(*given: object) -> frozenset[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pretrain.engine.path.planar_layers", short)
    with pytest.raises(UserError, match=r"(?s)does not fit.*fewer clips a lane"):
        run_path(tmp_path, model, FP32, ALONE)
