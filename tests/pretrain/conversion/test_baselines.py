"""The baselines out of a run and into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.conversion.export_file import read_export
from pretrain.conversion.import_export import export_run, import_run
from pretrain.data.views.views import ClipSettings
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.run_folder import Run, read_settings
from pretrain.settings import DataSettings, TrainSettings
from pretrain.training.initial_network import start_from
from tests.pretrain.conftest import CLASSES
from tests.support.training.checkpoints import commit

CLIP = ClipSettings(frames=4, resize=(18, 22), crop=16)


@pytest.mark.parametrize(
    "model",
    [{"name": "r3drelu", "depth": 10}, {"name": "p3d", "depth": 26}, {"name": "s3d"}, {"name": "lstm"}],
    ids=lambda model: model["name"],
)
def test_a_baseline_comes_back_as_it_was(tmp_path: Path, model: dict[str, Any]) -> None:
    described = ModelSettings.model_validate({**model, "width": 1 / 16})
    settings = TrainSettings(data=DataSettings(store="/the/store", clip=CLIP), model=described)
    Run(tmp_path / "run", writes=True).begin(settings, CLASSES, ["the-index"], {})
    network = build_model(settings.model, len(CLASSES), CLIP.frames)
    commit(tmp_path / "run", Checkpoint(30, network.state_dict(), {}, {}, {"step": 30}))
    export_run(tmp_path / "run", tmp_path / "file.safetensors")
    assert read_export(tmp_path / "file.safetensors").model == settings.model
    import_run(tmp_path / "file.safetensors", tmp_path / "again")
    again = build_model(settings.model, len(CLASSES), CLIP.frames)
    start_from(again, read_settings(tmp_path / "again")[0], tmp_path / "again", CLASSES)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())
