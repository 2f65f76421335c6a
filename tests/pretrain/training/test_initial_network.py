"""What a run may start from: another run's network, its classifier kept or new; and what is refused, by its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.models.zoo import build_model
from pretrain.run_folder import read_settings
from pretrain.settings import InitSettings, TrainSettings
from pretrain.training.initial_network import start_from
from sharding.base.errors import UserError
from tests.pretrain.conftest import CLASSES, Finished
from tests.support.training.checkpoints import load_run

pytestmark = pytest.mark.cluster  # they start from a run that is trained


def tuning(run: Path, head: str = "auto", model: dict[str, Any] | None = None, **changes: Any) -> TrainSettings:
    """The settings of a run that starts from `run`, with a network changed by `model`."""
    settings = read_settings(run)[0]
    init = InitSettings.model_validate({"run": str(run), "head": head})
    return settings.model_copy(update={"init": init, "model": settings.model.model_copy(update=model or {}), **changes})


def begin(settings: TrainSettings, classes: list[str]) -> torch.nn.Module:
    """The network that the run begins with."""
    model = build_model(settings.model, len(classes), 4, 16)
    assert settings.init
    start_from(model, settings, Path(settings.init.run), classes)
    return model


def test_another_form_is_refused_with_its_tensors(finished: Finished) -> None:
    with pytest.raises(UserError) as refused:
        begin(tuning(finished.folder, model={"name": "r3d"}), CLASSES)
    assert "model.name is r3d here and r2plus1d in the run to start from" in refused.value.what
    assert "missing (" in refused.value.what and " unexpected (layer1.0.conv" in refused.value.what
    assert "stem.1.bias (6,) for (8,)" in refused.value.what and "fc." not in refused.value.what
    assert refused.value.remedy == "set model.name=r2plus1d" and refused.value.where == str(finished.folder)


def test_another_width_and_other_channels_are_refused_with_their_shapes(finished: Finished) -> None:
    flow = read_settings(finished.folder)[0].data
    flow = flow.model_copy(update={"clip": flow.clip.model_copy(update={"input": "flow"})})
    with pytest.raises(UserError) as refused:
        begin(tuning(finished.folder, model={"in_channels": 2, "width": 0.25}, data=flow), CLASSES)
    assert "model.width is 0.25 here and 0.125" in refused.value.what
    assert "model.in_channels is 2 here and 3" in refused.value.what
    assert "of another shape (stem.0.weight" in refused.value.what and "3, 1, 7, 7) for (" in refused.value.what
    assert refused.value.remedy == "set model.width=0.125 model.in_channels=3 data.clip.input=rgb"


def test_other_classes_get_a_new_classifier_unless_it_is_to_be_kept(finished: Finished) -> None:
    others, trained = [*CLASSES[:-1], "another", "more"], load_run(finished.folder).model
    for head in ("auto", "new"):
        model = begin(tuning(finished.folder, head), others)
        assert len(model.state_dict()["fc.weight"]) == 7
        assert torch.equal(model.state_dict()["stem.0.weight"], trained["stem.0.weight"])
    with pytest.raises(UserError) as refused:
        begin(tuning(finished.folder, "keep"), others)
    assert "class5 only in the run to start from; another, more only here" in refused.value.what
    assert "fc.weight (6, " in refused.value.what and ") for (7, " in refused.value.what
    assert "init.head=new" in refused.value.remedy
    with pytest.raises(UserError, match="another only here"):
        begin(tuning(finished.folder, "keep"), others[:-1])  # as many, of other names


def test_a_new_classifier_for_the_same_classes(finished: Finished) -> None:
    trained = load_run(finished.folder).model["fc.weight"]
    assert torch.equal(begin(tuning(finished.folder, "keep"), CLASSES).state_dict()["fc.weight"], trained)
    assert not torch.equal(begin(tuning(finished.folder, "new"), CLASSES).state_dict()["fc.weight"], trained)


def test_a_new_classifier_that_would_never_learn(finished: Finished) -> None:
    settings = tuning(finished.folder)
    frozen = settings.model_copy(update={"schedule": settings.schedule.model_copy(update={"rates": {"head": 0.0}})})
    begin(frozen, CLASSES)
    with pytest.raises(UserError, match="would never learn"):
        begin(frozen, ["left", "right"])
