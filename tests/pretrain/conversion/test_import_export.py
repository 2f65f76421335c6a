"""Networks out of a run and into one: nothing is lost on the way, and an imported run is a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.conversion.export_file import Export, is_export, read_export, write_export
from pretrain.conversion.import_export import export_run, import_run, read_classes
from pretrain.data.views.views import FLOW_MEAN, FLOW_STD, MEAN, STD, ClipSettings, Normalisation
from pretrain.evaluation.evaluate import EvaluateSettings, open_subject
from pretrain.models.weights import load_weights
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.report.run_data import read_run
from pretrain.run_folder import Run, read_settings
from pretrain.settings import DataSettings, TrainSettings
from pretrain.training.initial_network import start_from
from sharding.base.errors import UserError
from tests.pretrain.conftest import CLASSES
from tests.support.training.checkpoints import commit, load_run
from tests.support.training.evaluations import score_videos
from tests.support.training.published_files import i3d_shapes, image_shapes, random_state, video_shapes

CLIP = ClipSettings(frames=4, stride=2, resize=(18, 22), crop=16, flip=False)
SETTINGS = TrainSettings(
    data=DataSettings(store="/the/store", clip=CLIP), model=ModelSettings(depth=10, width=1 / 8, dropout=0.3)
)


@pytest.fixture()
def trained(tmp_path: Path) -> Path:
    """The folder of a run with a checkpoint at step 30, as training leaves it."""
    run = tmp_path / "trained"
    Run(run, writes=True).begin(SETTINGS, CLASSES, ["the-index"], {})
    state = build_model(SETTINGS.model, len(CLASSES), CLIP.frames).state_dict()
    commit(run, Checkpoint(30, state, {}, {}, {"step": 30}))
    return run


@pytest.fixture()
def r3d(tmp_path: Path) -> Path:
    """A file in torchvision's layout: R3D-18 of an eighth of the width, 6 classes."""
    torch.save(random_state(video_shapes(("3d",) * 4, classes=len(CLASSES), planes=8)), tmp_path / "r3d_18.pth")
    return tmp_path / "r3d_18.pth"


def names_file(folder: Path, names: list[str]) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(names) + "\n\n", encoding="utf-8")
    return path


def assert_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name


def test_an_export_says_all_that_a_user_must_know(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "network.safetensors"
    said = export_run(trained, file)
    assert said["step"] == 30 and said["classes"] == 6 and said["file"] == str(file)
    assert said["model"] == {"name": "r2plus1d", "depth": 10, "width": 0.125, "dropout": 0.3}
    assert [path.name for path in file.parent.iterdir()] == ["network.safetensors"]
    assert_bits(load_file(file), load_run(trained).model)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["normalisation"]) == {"mean": list(MEAN), "std": list(STD), "range": [0, 1]}
    described = json.loads(metadata["input"])
    assert described["shape"] == [3, 4, 16, 16]
    assert [described[key] for key in ("frames", "stride", "resize", "crop")] == [4, 2, [18, 22], 16]
    assert json.loads(metadata["model"]) == SETTINGS.model.model_dump(mode="json")
    provenance = json.loads(metadata["provenance"])
    assert (provenance["run"], provenance["step"]) == ("trained", 30)
    assert (provenance["store"], provenance["index"]) == ("/the/store", ["the-index"])
    export = read_export(file)
    assert (export.model, export.classes, export.clip) == (SETTINGS.model, CLASSES, CLIP)
    export_run(trained, file)  # again: the file is replaced
    assert_bits(load_file(file), load_run(trained).model)


def test_every_bit_of_an_export_comes_back(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {
        "bits": torch.randint(-(2**31), 2**31, (999,), generator=draw).to(torch.int32).view(torch.float32),
        "half": torch.randn(3, 5, generator=draw).half(),
        "brain": torch.randn(3, 5, generator=draw).bfloat16().t(),
        "wide": torch.randn(7, generator=draw, dtype=torch.float64),
        "count": torch.tensor(2**40 + 1),
    }
    classes = ["naïve", "two words", '"quoted"', "滑雪", ""]
    export = Export(SETTINGS.model, classes, CLIP, {"run": "ü"}, state)
    write_export(tmp_path / "file.safetensors", export)
    back = read_export(tmp_path / "file.safetensors")
    assert back.state.keys() == state.keys()
    for name, value in state.items():
        assert value.dtype == back.state[name].dtype and value.shape == back.state[name].shape
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
        assert torch.equal(value.contiguous().view(kind), back.state[name].view(kind)), name
    assert (back.classes, back.clip, back.provenance) == (classes, CLIP, {"run": "ü"})


def test_an_export_of_flow_says_how_flow_enters(tmp_path: Path) -> None:
    clip = ClipSettings(input="flow", frames=4, resize=(18, 22), crop=16)
    model = SETTINGS.model.model_copy(update={"in_channels": 2})
    export = Export(model, CLASSES, clip, {}, {"weight": torch.zeros(1)})
    assert export.normalisation == {"mean": list(FLOW_MEAN), "std": list(FLOW_STD)}
    write_export(tmp_path / "flow.safetensors", export)
    back = read_export(tmp_path / "flow.safetensors")
    assert back.clip == clip and back.normalisation == export.normalisation


def test_a_run_goes_out_and_comes_in(trained: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "network.safetensors", tmp_path / "imported"
    export_run(trained, file)
    said = import_run(file, run)
    assert said["class_names"] == "the export's" and said["notes"] == []
    settings, classes = read_settings(run)
    assert (settings.model, settings.data.clip, classes) == (SETTINGS.model, CLIP, CLASSES)
    checkpoint = load_run(run)
    assert checkpoint.step == 0
    assert_bits(checkpoint.model, load_run(trained).model)
    again = tmp_path / "again.safetensors"
    export_run(run, again)
    assert_bits(load_file(again), load_file(file))
    assert read_export(again).provenance["imported"]["export"]["run"] == "trained"
    assert read_run(run).train == []  # a report of it is empty, and no error


@pytest.mark.slow
def test_an_imported_run_is_evaluated_and_fine_tuned(r3d: Path, tmp_path: Path, store: str) -> None:
    run = tmp_path / "runs" / "imported"
    said = import_run(r3d, run, names_file(tmp_path, CLASSES))
    assert said["model"] == {"name": "r3d", "depth": 18, "width": 0.125, "eps": 1e-5}
    assert said["class_names"].endswith("names.txt")
    assert (said["clip"]["frames"], said["clip"]["resize"], said["clip"]["crop"]) == (16, [128, 171], 112)
    subject = open_subject(EvaluateSettings(run=str(run), store=store))
    assert subject.step == 0 and subject.split.index.classes == CLASSES
    (score,) = score_videos(subject, [0], batch=1, workers=1)
    assert score.scores is not None and score.scores.shape == (6,) and score.scores.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="imported and has no store") as refused:
        open_subject(EvaluateSettings(run=str(run)))
    assert refused.value.where == str(run) and "store=STORE" in refused.value.remedy
    published = torch.load(r3d, weights_only=True)
    settings = read_settings(run)[0]
    for changed, said in (({"eps": 1e-3}, "set model.eps=1e-05"), ({"pool1": True}, "set model.pool1=False")):
        other = settings.model_copy(update={"model": settings.model.model_copy(update=changed)})
        with pytest.raises(UserError, match=said):
            start_from(build_model(other.model, 6, 4), other, run, CLASSES)
    for classes, kept in ((CLASSES, True), (["left", "right"], False)):
        model = build_model(ModelSettings(name="r3d", depth=18, width=1 / 8, eps=1e-5), len(classes), 4)
        fresh = model.fc.weight.detach().clone()
        start_from(model, settings, run, classes)
        assert torch.equal(model.layer4[1].conv2[0].weight, published["layer4.1.conv2.0.weight"])
        assert torch.equal(model.fc.weight, published["fc.weight"] if kept else fresh)


@pytest.mark.slow
def test_what_the_weights_do_not_tell_is_said(tmp_path: Path) -> None:
    for number, (shapes, inflate, size, note) in enumerate(
        (
            (video_shapes(("2+1",) * 4, 34, 359, planes=8, middle="conv", stem=6), None, 112, "16 frames are assumed"),
            (i3d_shapes(classes=5, part=8), None, 224, "64 frames are assumed"),
            (i3d_shapes(classes=5, part=8, channels=2), None, 224, "optical flow"),
            (image_shapes(18, planes=8), "r3d", 224, "16 frames are assumed"),
        )
    ):
        torch.save(random_state(shapes), tmp_path / "file.pth")
        run = tmp_path / f"run{number}"
        said = import_run(tmp_path / "file.pth", run, inflate=inflate)
        assert note in " ".join(said["notes"])
        assert said["clip"]["crop"] == size
        assert said["classes"] == len(read_settings(run)[1])
        assert read_settings(run)[1][1] == "class-001" and "class-000" in said["class_names"]
        export_run(run, tmp_path / "out.safetensors")
        export = read_export(tmp_path / "out.safetensors")
        assert export.normalisation == said["normalisation"]
        assert export.normalisation is not None and (export.clip.input == "flow") == ("optical flow" in note)
        assert export.provenance["imported"]["file"] == "file.pth"
    assert said["normalisation"]["mean"] == [0.485, 0.456, 0.406]


def test_the_clips_length_can_be_told(r3d: Path, tmp_path: Path) -> None:
    said = import_run(r3d, tmp_path / "run", frames=32)
    assert said["clip"]["frames"] == 32 and not [note for note in said["notes"] if "assumed" in note]


def test_an_r2ds_clips_are_as_long_as_its_first_convolution(tmp_path: Path) -> None:
    settings = ModelSettings(name="r2d", depth=10, width=1 / 8)
    model = build_model(settings, 6, 8)
    torch.save(model.state_dict(), tmp_path / "r2d.pth")
    assert import_run(tmp_path / "r2d.pth", tmp_path / "run")["clip"]["frames"] == 8
    export_run(tmp_path / "run", tmp_path / "r2d.safetensors")
    for file in ("r2d.pth", "r2d.safetensors"):
        with pytest.raises(UserError, match="this R2D takes clips of 8 frames"):
            import_run(tmp_path / file, tmp_path / "other", frames=16)
    again = import_run(tmp_path / "r2d.safetensors", tmp_path / "again", frames=8)
    assert again["clip"]["frames"] == 8
    ours = read_settings(tmp_path / "run")[0]
    clip = ours.data.clip.model_copy(update={"frames": 4})
    longer = ours.model_copy(update={"data": ours.data.model_copy(update={"clip": clip})})
    with pytest.raises(UserError, match=r"data\.clip\.frames is 4 here and 8 in the run") as refused:
        start_from(build_model(settings, 6, 4), longer, tmp_path / "run", CLASSES)
    assert refused.value.remedy == "set data.clip.frames=8"


@pytest.mark.slow
def test_i3ds_flow_is_cut_at_20_pixels(tmp_path: Path) -> None:
    model = build_model(ModelSettings(name="i3d", width=1 / 16, in_channels=2), 6, 8)
    torch.save(model.state_dict(), tmp_path / "flow.pth")
    import_run(tmp_path / "flow.pth", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "flow.safetensors")
    with safe_open(tmp_path / "flow.safetensors", "pt") as opened:
        output = {
            key: json.loads(value) for key, value in opened.metadata().items() if key in ("input", "normalisation")
        }
    assert output["input"]["input"] == "flow" and output["input"]["shape"][0] == 2
    assert output["normalisation"] == {"mean": [0.0, 0.0], "std": [20.0, 20.0]}
    assert import_run(tmp_path / "flow.safetensors", tmp_path / "again")["normalisation"] == output["normalisation"]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a", "b"], "2 class names for a network of 6 classes"),
        (["a"] * 6, "'a' is there twice"),
        ([], "0 class names"),
    ],
)
def test_class_names_that_do_not_fit(r3d: Path, tmp_path: Path, names: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        import_run(r3d, tmp_path / "run", names_file(tmp_path, names))
    with pytest.raises(UserError, match="cannot be read"):
        read_classes(tmp_path / "nowhere.txt", 6)
    assert not [path for path in tmp_path.iterdir() if "run" in path.name]


def test_class_names_as_windows_and_macos_write_them(r3d: Path, tmp_path: Path) -> None:
    names = ["jump", "cafe\u0301", "noël", " run ", "張", "c6"]
    file = tmp_path / "names.txt"
    file.write_bytes(("\ufeff" + "\r\n".join(names) + "\r\n").encode())
    import_run(r3d, tmp_path / "run", file)
    assert read_settings(tmp_path / "run")[1] == ["jump", "café", "noël", "run", "張", "c6"]
    (tmp_path / "run" / "classes.json").write_text(json.dumps(names))  # as before names had one form
    assert read_settings(tmp_path / "run")[1][1] == "café"
    for encoding, words in (("latin-1", "not UTF-8"), ("utf-16", "UTF-16"), ("utf-16-le", "NUL bytes")):
        file.write_bytes("a\nb\nc\nd\nété\nf\n".encode(encoding))
        with pytest.raises(UserError, match=rf"{words}(.|\n)*names.txt(.|\n)*save it as UTF-8"):
            read_classes(file, 6)


def test_imports_that_are_refused_leave_nothing(r3d: Path, trained: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    for run, file, what in (
        (trained, r3d, "something already"),
        (r3d, r3d, "something already"),
        (tmp_path / "run", tmp_path / "nowhere.pth", "no such file"),
        (tmp_path / "run", tmp_path / "nowhere.safetensors", "no such file"),
        (r3d / "run", r3d, "is no folder"),
    ):
        with pytest.raises(UserError, match=what):
            import_run(file, run)
    with pytest.raises(UserError, match="frames"):
        import_run(r3d, tmp_path / "run", frames=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (tmp_path / "empty").mkdir()
    import_run(r3d, tmp_path / "empty")


def test_exports_that_are_refused(trained: Path, tmp_path: Path) -> None:
    for run, file, what in (
        (tmp_path / "nowhere", tmp_path / "file.safetensors", "not a run's folder"),
        (trained, tmp_path / "file.pth", "ends in .safetensors"),
        (trained, trained / "settings.json" / "file.safetensors", "cannot be written"),
    ):
        with pytest.raises(UserError) as refused:
            export_run(run, file)
        assert what in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"reelscale": "2"}, "format 2, this version reads 1"),
        ({"classes": "["}, "damaged"),
        ({"input": "{}", "classes": "3"}, "damaged"),
        ({"model": '{"name": "r4d"}'}, "r4d"),
        ({"input": '{"frames": 0}'}, "frames"),
        ({"input": "[]"}, "damaged"),
        ({"provenance": None}, "damaged"),
    ],
)
def test_exports_that_cannot_be_read(trained: Path, tmp_path: Path, change: dict[str, Any], what: str) -> None:
    file = tmp_path / "file.safetensors"
    export_run(trained, file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() | change
    state = load_file(file)
    save_file(state, file, {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(UserError, match=what):
        import_run(file, tmp_path / "run")
    save_file(state, file)
    assert not is_export(file)
    with pytest.raises(UserError, match="not an export"):
        read_export(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read"):
        read_export(file)


def test_an_export_is_one_under_any_name(trained: Path, tmp_path: Path) -> None:
    export_run(trained, tmp_path / "file.safetensors")
    (tmp_path / "file.safetensors").rename(tmp_path / "weights.bin")
    assert import_run(tmp_path / "weights.bin", tmp_path / "run")["class_names"] == "the export's"


def test_what_a_wrapped_network_was_is_said(tmp_path: Path) -> None:
    state = random_state(video_shapes(("3d",) * 4, classes=6, planes=8))
    torch.save(
        {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "x.ckpt"
    )
    said = import_run(tmp_path / "x.ckpt", tmp_path / "run", frames=16)
    assert said["notes"] == ["the network is the file's state_dict.model.*", "set aside: epoch"]
    assert_bits(load_run(tmp_path / "run").model, state)


def test_an_export_loads_without_us(trained: Path, tmp_path: Path) -> None:
    export_run(trained, tmp_path / "file.safetensors")
    export = read_export(tmp_path / "file.safetensors")
    model = build_model(export.model, len(export.classes), export.clip.frames)
    load_weights(model, export.state, "keep")
    assert export.clip.normalisation == Normalisation()
