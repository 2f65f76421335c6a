"""The compute path a run takes: measured once, kept, and the same for every rank."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from pretrain.engine.autotune import conv_form as planar_module
from pretrain.engine.autotune.benchmark import measure
from pretrain.engine.autotune.choose import choose_compute_path, evaluation_compute_path, exclude_compute_path
from pretrain.engine.autotune.conv_form import ConvolutionKind, planar_layers
from pretrain.engine.distributed import World
from pretrain.engine.precision import MicroStep, Precision
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.compute_path import COMPUTE_PATHS, ON_CPU, Convolution, Factored
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))
CLIP = (3, 4, 16, 16)
FP32 = MicroStep(CLIP, 2, "fp32")


@pytest.fixture
def model() -> VideoNetwork:
    torch.manual_seed(0)
    return build_model(ModelSettings(depth=10, width=0.125), 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_fastest_is_taken_and_kept(model: VideoNetwork, precision: Precision, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compute_path = choose_compute_path(tmp_path, model, MicroStep(CLIP, 2, precision), ALONE)
    kept = json.loads((tmp_path / "compute_path.json").read_text())
    rates = kept["clips_per_second"]
    assert kept["precision"] == precision and list(rates) == list(ON_CPU)
    assert kept["compute_path"] == max(ON_CPU, key=rates.__getitem__)
    layers = {name for name, layer in model.named_modules() if isinstance(layer, Convolution)}
    assert set(kept["planar"]) <= layers
    whole = COMPUTE_PATHS[kept["compute_path"]]
    assert compute_path == (replace(whole, planar=frozenset(kept["planar"])) if whole.planar else whole)
    # The network itself took no step and saw no batch.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert not any(buffer.any() for key, buffer in model.named_buffers() if key.endswith("pending"))


@pytest.mark.slow
def test_what_was_kept_is_taken_again_on_the_same_device(model: VideoNetwork, tmp_path: Path) -> None:
    choose_compute_path(tmp_path, model, FP32, ALONE)
    kept = json.loads((tmp_path / "compute_path.json").read_text())
    recorded = kept | {"compute_path": "planar", "planar": ["stem.0"]}
    (tmp_path / "compute_path.json").write_text(json.dumps(recorded))
    assert choose_compute_path(tmp_path, model, FP32, ALONE).planar == frozenset({"stem.0"})
    for other in (
        {"device": "another"},
        {"compute_path": "none such"},
        {"precision": "bf16"},
        {"batch": 4},
        {"more": 1},
    ):
        (tmp_path / "compute_path.json").write_text(json.dumps(recorded | other))
        choose_compute_path(tmp_path, model, FP32, ALONE)
        assert json.loads((tmp_path / "compute_path.json").read_text()).keys() == kept.keys()
        assert json.loads((tmp_path / "compute_path.json").read_text())["device"] == "cpu"


@pytest.mark.slow
def test_a_path_that_failed_is_not_taken_again(
    model: VideoNetwork, tmp_path: Path, run_log: pytest.LogCaptureFixture
) -> None:
    choose_compute_path(tmp_path, model, FP32, ALONE)
    kept = json.loads((tmp_path / "compute_path.json").read_text())
    order = sorted(ON_CPU, key=kept["clips_per_second"].__getitem__, reverse=True)
    for number, (failed, following) in enumerate(itertools.pairwise(order)):
        assert exclude_compute_path(tmp_path, ALONE) == following
        assert f"the compute path {failed} is left out" in run_log.text
        taken = choose_compute_path(tmp_path, model, FP32, ALONE)
        assert taken.channels_last is COMPUTE_PATHS[following].channels_last and bool(taken.planar) is (
            following == "planar" and bool(kept["planar"])
        )
        assert json.loads((tmp_path / "compute_path.json").read_text())["failed"] == order[: number + 1]
    # Measured anew, for other clips, it stays left out; with other libraries it may run.
    assert choose_compute_path(tmp_path, model, MicroStep(CLIP, 3, "fp32"), ALONE)
    again = json.loads((tmp_path / "compute_path.json").read_text())
    assert again["failed"] == order[:-1] and list(again["clips_per_second"]) == order[-1:]
    (tmp_path / "compute_path.json").write_text(json.dumps(again | {"made_by": "others"}))
    choose_compute_path(tmp_path, model, FP32, ALONE)
    assert json.loads((tmp_path / "compute_path.json").read_text())["failed"] == []


def test_no_path_that_is_left(model: VideoNetwork, tmp_path: Path) -> None:
    choose_compute_path(tmp_path, model, FP32, ALONE)
    for _ in ON_CPU[1:]:
        exclude_compute_path(tmp_path, ALONE)
    with pytest.raises(RuntimeError, match="no compute path trains"):
        exclude_compute_path(tmp_path, ALONE)
    with pytest.raises(RuntimeError, match="no compute path trains"):
        choose_compute_path(tmp_path, model, FP32, ALONE)


def test_evaluation_takes_the_runs_path_on_the_same_device(tmp_path: Path) -> None:
    recorded = {
        "compute_path": "planar",
        "planar": ["stem.0"],
        "recomputed": 0,
        "device": "cpu",
        "batch": 2,
        "precision": "fp32",
        "clips_per_second": {"planar": 1},
    }
    (tmp_path / "compute_path.json").write_text(json.dumps(recorded))
    assert evaluation_compute_path(tmp_path, "auto", ALONE.device).planar == frozenset({"stem.0"})
    assert evaluation_compute_path(tmp_path, "plain", ALONE.device) == COMPUTE_PATHS["plain"]
    (tmp_path / "compute_path.json").write_text(json.dumps(recorded | {"device": "a GPU"}))
    assert evaluation_compute_path(tmp_path, "auto", ALONE.device) == COMPUTE_PATHS["channels-last"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"path": "none such"}'])
def test_without_a_record_it_is_the_default(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "compute_path.json").write_text(text)
    assert evaluation_compute_path(tmp_path, "auto", ALONE.device) == COMPUTE_PATHS["channels-last"]


def test_layers_are_planar_where_that_is_faster(model: VideoNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def faster(kind: ConvolutionKind, device: torch.device, precision: str, repeats: int) -> bool:
        layer = kind.layer
        asked.append((layer.kernel_size, layer.stride, kind.channels, tuple(kind.input.shape), kind.first))
        return layer.kernel_size == (3, 1, 1)

    monkeypatch.setattr(planar_module, "_faster_planar", faster)
    found = planar_layers(model, torch.randn(2, *CLIP), "fp16")
    assert found == {name for name, layer in model.named_modules() if getattr(layer, "kernel_size", 0) == (3, 1, 1)}
    assert [kind for kind in asked if kind[-1]] == [((1, 7, 7), (1, 2, 2), (3, 6), (2, *CLIP), True)]
    # Layers of a kind are measured once.
    assert len(asked) == len(set(asked)) < sum(isinstance(layer, Convolution) for layer in model.modules())
    monkeypatch.undo()
    assert planar_layers(model, torch.randn(2, *CLIP), "bf16", repeats=1) <= {
        name for name, layer in model.named_modules() if isinstance(layer, Convolution)
    }


def test_layers_are_timed_as_the_path_pads_them(model: VideoNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[ConvolutionKind] = []
    monkeypatch.setattr(planar_module, "_faster_planar", lambda kind, *_: bool(kinds.append(kind)))
    planar_layers(model, torch.randn(2, *CLIP), "fp32", multiple=8)
    sides = {name: kind.channels for kind in kinds for name in kind.names}
    for name, layer in model.named_modules():
        if isinstance(layer, Factored):
            assert sides[f"{name}.0"] == (layer[0].in_channels, -(-layer[0].out_channels // 8) * 8)
            assert sides[f"{name}.3"] == (-(-layer[0].out_channels // 8) * 8, layer[3].out_channels)
    assert sides["layer2.0.downsample.0"] == (8, 16)
    monkeypatch.undo()
    for kind in kinds:
        layer, x = planar_module._standing_in(kind, ALONE.device, "fp32")
        assert layer(x).shape[1] == kind.channels[1] and x.requires_grad is not kind.first


def test_layers_past_the_time_follow_a_rule(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, run_log: pytest.LogCaptureFixture
) -> None:
    run_log.set_level(logging.INFO, "reelscale")
    clock, asked = [0.0], []

    def slow(kind: ConvolutionKind, *_: object) -> bool:
        clock[0] += 1.0
        asked.append(kind)
        return True

    monkeypatch.setattr(planar_module, "_faster_planar", slow)
    monkeypatch.setattr(planar_module.time, "perf_counter", lambda: clock[0])
    every = planar_layers(model, torch.randn(2, *CLIP), "fp32")
    whole = list(asked)
    assert [kind.cost for kind in whole] == sorted((kind.cost for kind in whole), reverse=True)
    assert {name for kind in whole for name in kind.names} == every
    asked.clear()
    found = planar_layers(model, torch.randn(2, *CLIP), "fp32", seconds=3.0)
    assert [kind.names for kind in asked] == [kind.names for kind in whole[:3]]
    assert len(asked) == 3 and found == {name for kind in whole[:3] for name in kind.names} | {"stem.0"}
    assert f"of {len(whole)} kinds of convolutions 3 were timed" in run_log.text


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

    def failing(self: VideoNetwork, compute_path: object) -> None:
        use(self, COMPUTE_PATHS["plain"])
        if compute_path == COMPUTE_PATHS["planar"]:
            self.register_forward_pre_hook(lambda *call: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))

    monkeypatch.setattr(VideoNetwork, "use", failing)
    clips = torch.randn(2, *CLIP)
    with caplog.at_level(logging.WARNING, "reelscale"):
        both = {name: COMPUTE_PATHS[name] for name in ("plain", "planar")}
        assert list(measure(model, clips, "fp32", both, 1)) == ["plain"]
        assert "planar does not run here: no compiler" in caplog.text and "at all" not in caplog.text
        with pytest.raises(RuntimeError, match="no compute path runs"):
            measure(model, clips, "fp32", {"planar": COMPUTE_PATHS["planar"]}, 1)


@pytest.mark.slow
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
    compute_paths = {name: COMPUTE_PATHS[name] for name in ("planar", "plain", "channels-last")}
    with caplog.at_level(logging.WARNING, "reelscale"):
        assert set(measure(model, torch.randn(8, 3, 4, 32, 32), "bf16", compute_paths, 1)) == {"plain", "channels-last"}
    assert "the compute path planar computes wrongly here" in caplog.text
    with pytest.raises(RuntimeError, match="no compute path runs"):  # nor is it the measure of itself where it is alone
        measure(model, torch.randn(8, 3, 4, 32, 32), "bf16", {"planar": COMPUTE_PATHS["planar"]}, 1)


@pytest.mark.parametrize("rates", [{"stem": 0}, {"stem": 0, "stages": 0}, {"conv3": 0}])
def test_a_network_with_frozen_parts_is_measured(rates: dict[str, float], tmp_path: Path, model: VideoNetwork) -> None:
    freeze(model, rates)
    choose_compute_path(tmp_path, model, FP32, ALONE)
    assert set(json.loads((tmp_path / "compute_path.json").read_text())["clips_per_second"]) == set(ON_CPU)


def test_a_network_that_diverged_is_measured(model: VideoNetwork, caplog: pytest.LogCaptureFixture) -> None:
    """What its logits should be, nobody can tell."""
    torch.nn.init.constant_(model.get_submodule("fc").weight, float("nan"))
    assert set(measure(model, torch.randn(2, *CLIP), "fp32", {"plain": COMPUTE_PATHS["plain"]}, 1)) == {"plain"}
    assert "wrongly" not in caplog.text


def test_lanes_normalised_together_are_measured_so(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def noted(network: VideoNetwork, *values: object, **named: object) -> dict[str, float]:
        seen.append(all(layer.gather for layer in network.modules() if isinstance(layer, LaneBatchNorm)))
        return {"plain": 1.0}

    monkeypatch.setattr("pretrain.engine.autotune.choose.measure", noted)
    for together in (False, True):
        choose_compute_path(tmp_path, model, MicroStep(CLIP, 2, "fp32", joint_batch_norm=together), ALONE)
        (tmp_path / "compute_path.json").unlink()
    assert seen == [False, True]
    assert not any(layer.gather for layer in model.modules() if isinstance(layer, LaneBatchNorm))


@pytest.mark.slow
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
        if self.training and torch.is_grad_enabled() and self.compute_path.recomputed < needed:
            raise error
        return forward(self, clips)

    monkeypatch.setattr(VideoNetwork, "forward", short)
    needed = 2
    assert choose_compute_path(tmp_path, model, FP32, ALONE).recomputed == 2
    assert choose_compute_path(tmp_path, model, FP32, ALONE, recomputed=3).recomputed == 3
    with pytest.raises(UserError, match=r"(?s)2 clips of 4 frames of 16² .* not fit.*engine.recomputed=5"):
        choose_compute_path(tmp_path, model, FP32, ALONE, recomputed=1)
    needed = 6
    (tmp_path / "compute_path.json").unlink()
    with pytest.raises(UserError, match=r"(?s)does not fit.*fewer clips a lane"):
        choose_compute_path(tmp_path, model, FP32, ALONE)
    assert not (tmp_path / "compute_path.json").exists()


def test_a_layer_that_does_not_fit_is_a_mistake_of_the_settings(
    model: VideoNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def short(*values: object) -> frozenset[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pretrain.engine.autotune.choose.planar_layers", short)
    with pytest.raises(UserError, match=r"(?s)does not fit.*fewer clips a lane"):
        choose_compute_path(tmp_path, model, FP32, ALONE)
