"""Every published row that a recipe reproduces: what was trained and how it was scored, and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

NAMES_OF_FORMS = {
    "r2d": "R2D",
    "fr2d": "f-R2D",
    "r3d": "R3D",
    **{f"mc{stage}": f"MC{stage}" for stage in (2, 3, 4, 5)},
    **{f"rmc{stage}": f"rMC{stage}" for stage in (2, 3, 4, 5)},
    "r2plus1d": "R(2+1)D",
}
TABLE_2 = {  # form: (clip@1, video@1) of 8 frames and of 16
    "r2d": ((46.7, 59.5), (47.0, 58.9)),
    "fr2d": ((48.1, 59.4), (50.3, 60.5)),
    "r3d": ((49.4, 61.8), (52.5, 64.2)),
    "mc2": ((50.2, 62.5), (53.1, 64.2)),
    "mc3": ((50.7, 62.9), (53.7, 64.7)),
    "mc4": ((50.5, 62.5), (53.7, 65.1)),
    "mc5": ((50.3, 62.5), (53.7, 65.1)),
    "rmc2": ((49.8, 62.1), (53.1, 64.9)),
    "rmc3": ((49.8, 62.3), (53.2, 65.0)),
    "rmc4": ((49.9, 62.3), (53.4, 65.1)),
    "rmc5": ((49.4, 61.2), (52.1, 63.1)),
    "r2plus1d": ((52.8, 64.8), (56.8, 68.0)),
}
TABLE_6 = {  # (data set, pretrained on): video@1 of RGB, flow and two streams
    ("ucf101", "sports1m"): (93.6, 93.3, 95.0),
    ("ucf101", "kinetics400"): (96.8, 95.5, 97.3),
    ("hmdb51", "sports1m"): (66.6, 70.1, 72.7),
    ("hmdb51", "kinetics400"): (74.5, 76.4, 78.7),
}
I3D_SPLITS = {"ucf101": (95.6, 96.7, 98.0), "hmdb51": (74.8, 77.1, 80.7)}
CLASSES = {"kinetics400": 400, "sports1m": 487, "ucf101": 101, "hmdb51": 51}
_INPUTS = {"RGB": "rgb", "flow": "flow", "two-stream": "both"}
_SOURCES = {"scratch": "scratch", "Sports-1M": "sports1m"}
NAMES = {"kinetics400": "Kinetics-400", "sports1m": "Sports-1M", "ucf101": "UCF101", "hmdb51": "HMDB51"}
TEN, HUNDRED = "ten-clips-evaluate", "r2plus1d/table4/sports1m-evaluate"
THREE_CROPS = "ig65m/kinetics400-evaluate"


@dataclass(frozen=True)
class Policy:
    """How weights are changed.

    `clips`: of the whole schedule; None where they cannot be told. `rate`: the base learning rate divided by the clips
    of a step, which the papers keep where the number of GPUs is another. `decay`: the rule by which it falls.
    """

    clips: int | None
    rate: float
    weight_decay: float = 1e-4
    decay: str = "steps"
    optimizer: str = "sgd"


SCRATCH, KINETICS_TUNED = Policy(45_000_000, 0.01 / 32), Policy(15_000_000, 0.001 / 32)
SPLITS_TUNED = {
    "ucf101": Policy(800_000, 0.0001 / 4, weight_decay=5e-3),
    "hmdb51": Policy(320_000, 0.0002 / 4, weight_decay=5e-3),
}
I3D_SCRATCH, I3D_TUNED = (Policy(clips, 0.1 / 64, weight_decay=1e-7) for clips in (7_040_000, 320_000))
FIXED, SCALED, I3D_SCALED = "to 128 x 171", "to a short edge of 128 to 160", "to a short edge of 256"  # before the crop


@dataclass(frozen=True)
class Trained:
    """What was trained on what: all by which a run is the published one's like.

    `input`: rgb, flow or both, two streams fused. `source`: the data of the weights that it started from, scratch
    of none. `size`: of a clip's frames, in pixels; `resized`: before they were cropped to it. `besides`: settings of
    learning that the others do not tell, with their values, where these are not the usual ones.
    """

    data: str
    network: str
    depth: int | None
    frames: int
    size: int = 112
    input: str = "rgb"
    source: str = "scratch"
    resized: str = FIXED
    policy: Policy = SCRATCH
    stride: int = 1
    fps: float | None = None
    width: float = 1.0
    midplanes: str = "conv"
    pool1: bool = False
    besides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A published row: its table, what it is, the recipe that makes it (below configs/) and its figures in percent.

    `figures`: by clip@1, video@1 and video@5; none where none is published. `scored`: the recipe by which the run is
    scored; None of one that scores itself. `clips`: of a video, None where whole videos were scored; `splits`: whose
    mean the figures are; `crops`: of a clip, squares of `crop` pixels, None of the trained size.
    """

    table: str
    row: str
    recipe: str
    figures: dict[str, float]
    trained: Trained
    scored: str | None = TEN
    clips: int | None = 10
    splits: int = 1
    crops: int = 1
    crop: int | None = None

    @property
    def text(self) -> str:
        """The figures as a recipe's head has them."""
        return ", ".join(f"{name} {value:.1f} %" for name, value in self.figures.items())


def _accuracies(clip: float | None, video: float | None = None, five: float | None = None) -> dict[str, float]:
    named = {"clip@1": clip, "video@1": video, "video@5": five}
    return {name: value for name, value in named.items() if value is not None}


def _table_2() -> Iterator[Row]:
    for form, of_lengths in TABLE_2.items():
        for frames, figures in zip((8, 16), of_lengths, strict=True):
            recipe = f"r2plus1d/table2/kinetics400-{form}-18-{frames}f-pretrain"
            trained = Trained("kinetics400", form, 18, frames)
            name = f"{NAMES_OF_FORMS[form]}-18, {frames} frames"
            yield Row("R(2+1)D, Table 2", name, recipe, _accuracies(*figures), trained)


def _table_3() -> Iterator[Row]:
    folder = "r2plus1d/table3/kinetics400-r2plus1d-18"
    for frames in (24, 40, 48):
        trained = Trained("kinetics400", "r2plus1d", 18, frames)
        yield Row("R(2+1)D, Figure 5", f"R(2+1)D-18, {frames} frames", f"{folder}-{frames}f-pretrain", {}, trained)
    table, trained = "R(2+1)D, Table 3", Trained("kinetics400", "r2plus1d", 18, 32)
    yield Row(table, "R(2+1)D-18, 32 frames", f"{folder}-32f-pretrain", _accuracies(60.1, 69.4), trained)
    longer = replace(trained, source="kinetics400", policy=KINETICS_TUNED)
    yield Row(table, "trained on 8, goes on with 32", f"{folder}-32f-from-8f-finetune", _accuracies(59.8, 68.0), longer)
    tested = f"{folder}-8f-tested-at-32f-evaluate"
    yield Row(table, "trained on 8, tested on 32", tested, _accuracies(51.6, 59.0), longer, None)


def _table_4() -> Iterator[Row]:
    table, folder = "R(2+1)D, Table 4: Sports-1M", "r2plus1d/table4/sports1m"
    r3d = Trained("sports1m", "r3d", 34, 8)
    yield Row(table, "R3D-34, 8 frames", f"{folder}-r3d-34-8f-pretrain", _accuracies(53.8), r3d, HUNDRED, 100)
    for frames, rgb, flow, both in (
        (8, (56.1, 72.0, 91.2), (44.5, 65.5, 87.2), (72.2, 91.4)),
        (32, (57.0, 73.0, 91.5), (46.4, 68.4, 88.7), (73.3, 91.9)),
    ):
        name, recipe = f"R(2+1)D-34, {frames} frames", f"{folder}-r2plus1d-34-{frames}f"
        for stream, part, figures, scored in (
            ("RGB", "pretrain", rgb, HUNDRED),
            ("flow", "flow-pretrain", flow, HUNDRED),
            ("two-stream", "two-stream-evaluate", (None, *both), None),
        ):
            trained = Trained("sports1m", "r2plus1d", 34, frames, input=_INPUTS[stream])
            yield Row(table, f"{name}, {stream}", f"{recipe}-{part}", _accuracies(*figures), trained, scored, 100)


def _table_5() -> Iterator[Row]:
    folder = "r2plus1d/table5/kinetics400-r2plus1d-34-32f"
    for start, made, fused, policy, rgb, flow, both in (
        ("scratch", "pretrain", "", SCRATCH, (72.0, 90.0), (67.5, 87.2), (73.9, 90.9)),
        (
            "Sports-1M",
            "from-sports1m-finetune",
            "from-sports1m-",
            KINETICS_TUNED,
            (74.3, 91.4),
            (68.5, 88.1),
            (75.4, 91.9),
        ),
    ):
        table, name = "R(2+1)D, Table 5: Kinetics-400", f"R(2+1)D-34 from {start}"
        for stream, part, figures, scored in (
            ("RGB", made, rgb, TEN),
            ("flow", f"flow-{made}", flow, TEN),
            ("two-stream", f"two-stream-{fused}evaluate", both, None),
        ):
            source = _SOURCES[start]
            trained = Trained("kinetics400", "r2plus1d", 34, 32, input=_INPUTS[stream], source=source, policy=policy)
            yield Row(table, f"{name}, {stream}", f"{folder}-{part}", _accuracies(None, *figures), trained, scored)


def _table_6() -> Iterator[Row]:
    for (data, source), (rgb, flow, both) in TABLE_6.items():
        table, folder = "R(2+1)D, Table 6", f"r2plus1d/table6/{data}-r2plus1d-34-32f"
        name = f"{NAMES[data]}, R(2+1)D-34 from {NAMES[source]}"
        for stream, recipe, figure, scored in (
            ("RGB", f"{folder}-from-{source}-finetune", rgb, TEN),
            ("flow", f"{folder}-flow-from-{source}-finetune", flow, TEN),
            ("two-stream", f"{folder}-two-stream-from-{source}-evaluate", both, None),
        ):
            trained = Trained(data, "r2plus1d", 34, 32, input=_INPUTS[stream], source=source, policy=SPLITS_TUNED[data])
            yield Row(table, f"{name}, {stream}", recipe, _accuracies(None, figure), trained, scored, splits=3)


def _ig65m() -> Iterator[Row]:
    table, folder = "IG-65M and VMZ's releases", "ig65m"
    figures = {(34, 8): (74.9, 91.8), (34, 32): (79.1, 93.9), (152, 32): (80.5, 94.6)}
    for depth in (34, 152):
        for frames in (8, 16, 32):
            net = f"R(2+1)D-{depth}, {frames} frames"
            recipe = f"r2plus1d-{depth}-{frames}f"
            trained = Trained("ig65m", "r2plus1d", depth, frames)
            yield Row(table, f"IG-65M, {net}", f"{folder}/ig65m-{recipe}-pretrain", {}, trained)
            published = _accuracies(None, *figures.get((depth, frames), ()))
            tuned = f"{folder}/kinetics400-{recipe}-from-ig65m-finetune"
            on_kinetics = replace(trained, data="kinetics400", source="ig65m", policy=KINETICS_TUNED)
            yield Row(
                table, f"Kinetics-400 from IG-65M, {net}", tuned, published, on_kinetics, THREE_CROPS, crops=3, crop=128
            )
    for depth, scaled in ((34, (79.6, 94.2)), (152, (81.3, 95.1))):
        recipe = f"{folder}/kinetics400-r2plus1d-{depth}-32f-se-from-ig65m-finetune"
        trained = Trained("kinetics400", "r2plus1d", depth, 32, source="ig65m", resized=SCALED, policy=KINETICS_TUNED)
        name = f"Kinetics-400 from IG-65M, R(2+1)D-{depth}, SE"
        yield Row(table, name, recipe, _accuracies(None, *scaled), trained, THREE_CROPS, crops=3, crop=128)
    for stream, of_scratch, of_sports in (("", (77.3, 92.5), (79.5, 94.0)), ("-flow", (), ())):
        net, run = f"R(2+1)D-152, SE{stream.replace('-', ', ')}", f"r2plus1d-152-32f{stream}-se"
        trained = Trained("sports1m", "r2plus1d", 152, 32, input=stream[1:] or "rgb", resized=SCALED)
        yield Row(table, f"Sports-1M, {net}", f"{folder}/sports1m-{run}-pretrain", {}, trained, HUNDRED, 100)
        trained = replace(trained, data="kinetics400")
        scratch, tuned = f"{folder}/kinetics400-{run}-pretrain", f"{folder}/kinetics400-{run}-from-sports1m-finetune"
        for name, recipe, source, policy, figures_of in (
            (f"Kinetics-400 from scratch, {net}", scratch, "scratch", SCRATCH, of_scratch),
            (f"Kinetics-400 from Sports-1M, {net}", tuned, "sports1m", KINETICS_TUNED, of_sports),
        ):
            trained, published = replace(trained, source=source, policy=policy), _accuracies(None, *figures_of)
            yield Row(table, name, recipe, published, trained, THREE_CROPS, crops=3, crop=128)


def _i3d() -> Iterator[Row]:
    table, folder = "I3D (R(2+1)D's Tables 5 and 6)", "i3d/kinetics400-i3d"
    besides = ("model.dropout 0.5",)
    scratch = Trained(
        "kinetics400", "i3d", None, 64, 224, resized=I3D_SCALED, policy=I3D_SCRATCH, fps=25.0, besides=besides
    )
    recipe = f"{folder}-rgb-pretrain"
    yield Row(table, "Kinetics-400 from scratch, RGB", recipe, _accuracies(None, 67.5, 87.2), scratch, clips=None)
    for stream, part, figures, scored in (
        ("RGB", "rgb-from-imagenet-finetune", (72.1, 90.3), TEN),
        ("flow", "flow-from-imagenet-finetune", (65.3, 86.2), TEN),
        ("two-stream", "two-stream-from-imagenet-evaluate", (75.7, 92.0), None),
    ):
        trained = replace(scratch, source="imagenet", input=_INPUTS[stream])
        name = f"Kinetics-400 from ImageNet, {stream}"
        yield Row(table, name, f"{folder}-{part}", _accuracies(None, *figures), trained, scored, None)
    for data, of_streams in I3D_SPLITS.items():
        for stream, part, figure, scored in zip(
            ("RGB", "flow", "two-stream"),
            ("rgb-from-kinetics400-finetune", "flow-from-kinetics400-finetune", "two-stream-from-kinetics400-evaluate"),
            of_streams,
            (TEN, TEN, None),
            strict=True,
        ):
            trained = replace(scratch, data=data, source="kinetics400", input=_INPUTS[stream], policy=I3D_TUNED)
            name = f"{NAMES[data]} from ImageNet and Kinetics-400, {stream}"
            recipe = f"i3d/{data}-i3d-{part}"
            yield Row(table, name, recipe, _accuracies(None, figure), trained, scored, None, splits=3)


ROWS = [*_table_2(), *_table_3(), *_table_4(), *_table_5(), *_table_6(), *_ig65m(), *_i3d()]
