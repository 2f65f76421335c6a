"""Evaluation beside a slow one: PyAV, numpy and torch alone, by what the papers say, a clip at a time."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from pretrain.evaluation.evaluate import EvaluateSettings, open_subject
from pretrain.evaluation.summary import write_evaluation
from tests.pretrain.conftest import CLASSES, CLIP, SHORT, Finished
from tests.support.training.evaluations import score_videos, table_of

pytestmark = pytest.mark.slow

FRAMES, (HEIGHT, WIDTH), TRAINED = CLIP["frames"], CLIP["resize"], CLIP["crop"]
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
PROTOCOLS: dict[str, dict[str, Any]] = {
    "clips": {"clips": 4},
    "three-crops": {"clips": 3, "crops": 3},
    "three-crops-logits": {"clips": 2, "crops": 3, "average": "logits"},
    "convolutional": {"clips": 2, "crops": 3, "crop": 18},
    "convolutional-logits": {"clips": 2, "crop": 18, "average": "logits"},
    "pooled": {"clips": 1, "crop": 18, "pooling": "average"},
}


@dataclass(frozen=True)
class Video:
    """A stored video: its labels, and every frame as RGB resized to the recipe's size, float64 [3, T, H, W]."""

    labels: list[int]
    pictures: Tensor


@dataclass(frozen=True)
class Expected:
    """What a video has to get: its scores and logits, and how many of its clips are right."""

    scores: NDArray[np.float64]
    logits: NDArray[np.float64]
    clips: int
    clips_right: int


def videos_of(store: str) -> Iterator[tuple[str, Video]]:
    """Every stored validation video, by its key, decoded whole."""
    for path in sorted(Path(store, "val").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, body in members.items():
            if name.endswith(".mp4"):
                key = name.removesuffix(".mp4")
                yield key, Video(json.loads(members[f"{key}.json"])["labels"], decoded(body))


def decoded(mp4: bytes) -> Tensor:
    """All frames in RGB, resized without regard to the aspect ratio: [3, T, HEIGHT, WIDTH], 0 to 1."""
    pictures = []
    with av.open(io.BytesIO(mp4)) as container:
        for frame in container.decode(video=0):
            planes = frame.to_ndarray(format="yuv420p")
            tall, wide = frame.height, frame.width
            luma = planes[:tall]
            u, v = planes[tall:].reshape(2, tall // 2, wide // 2)
            y, cb, cr = (resized(plane) for plane in (luma, u, v))
            kr, kb = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
            y, cb, cr = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
            red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
            green = (y - kr * red - kb * blue) / (1 - kr - kb)
            pictures.append(torch.stack([red, green, blue]).clamp(0, 1))
    return torch.stack(pictures, 1)


def resized(plane: NDArray[np.uint8]) -> Tensor:
    whole = torch.from_numpy(plane.astype(np.float64))[None, None]
    return F.interpolate(whole, (HEIGHT, WIDTH), mode="bilinear", antialias=True)[0, 0]


def last_map(weights: dict[str, Tensor], clip: Tensor) -> Tensor:
    """R(2+1)D-10's last activations of one clip [3, T, H, W], stage after stage: [1, C, T', H', W']."""

    def conv(name: str, x: Tensor, stride: tuple[int, int, int], padding: tuple[int, int, int]) -> Tensor:
        return F.conv3d(x, weights[f"{name}.weight"], None, stride, padding)

    def norm(name: str, x: Tensor) -> Tensor:
        values = (weights[f"{name}.{what}"] for what in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values, eps=1e-3)

    def factored(name: str, x: Tensor, time: int, space: int) -> Tensor:
        x = conv(f"{name}.0.0", x, (1, space, space), (0, 1, 1))
        x = conv(f"{name}.0.3", norm(f"{name}.0.1", x).relu(), (time, 1, 1), (1, 0, 0))
        return norm(f"{name}.1", x)

    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (MEAN, STD))
    x = conv("stem.0", ((clip - mean) / std)[None], (1, 2, 2), (0, 3, 3))
    x = conv("stem.3", norm("stem.1", x).relu(), (1, 1, 1), (1, 0, 0))
    x = norm("stem.4", x).relu()
    # Four frames: time is halved at conv3 and conv4, and left alone at conv5, which takes eight.
    for layer, time, space in (("layer1", 1, 1), ("layer2", 2, 2), ("layer3", 2, 2), ("layer4", 1, 2)):
        shortcut = x
        if layer != "layer1":
            shortcut = conv(f"{layer}.0.downsample.0", x, (time, space, space), (0, 0, 0))
            shortcut = norm(f"{layer}.0.downsample.1", shortcut)
        x = factored(f"{layer}.0.conv1", x, time, space).relu()
        x = (factored(f"{layer}.0.conv2", x, 1, 1) + shortcut).relu()
    return x


def logits_at_places(weights: dict[str, Tensor], clip: Tensor, pooling: str) -> NDArray[np.float64]:
    """Logits [places, classes] of one crop of one clip."""
    x = last_map(weights, clip)
    window = (x.shape[2], 1, 1) if pooling == "convolutional" else tuple(x.shape[2:])  # 16 pixels: a map of 1 x 1
    pooled = F.avg_pool3d(x, window, stride=1)
    classified = F.conv3d(pooled, weights["fc.weight"][:, :, None, None, None], weights["fc.bias"])
    return classified[0].flatten(1).T.numpy()


def expected_of(
    weights: dict[str, Tensor],
    video: Video,
    clips: int,
    crops: int = 1,
    crop: int = TRAINED,
    pooling: str = "convolutional",
    average: str = "scores",
) -> Expected:
    frames = video.pictures.shape[1]
    room = max(frames - FRAMES, 0)
    starts = [0] if frames <= FRAMES else [room // 2] if clips == 1 else [i * room // (clips - 1) for i in range(clips)]
    top, left = (HEIGHT - crop) // 2, (WIDTH - crop) // 2
    lefts = [left] if crops == 1 else [0, left, WIDTH - crop]
    views: list[NDArray[np.float64]] = []
    right = 0
    for start in starts:
        shown = [(start + number) % frames for number in range(FRAMES)]
        for begin in lefts:
            pictures = video.pictures[:, shown, top : top + crop, begin : begin + crop]
            logits = logits_at_places(weights, pictures, pooling)
            views.append(logits)
            if begin == left:
                alone = softmax(logits).mean(0) if average == "scores" else logits.mean(0)
                right += int(alone.argmax()) in video.labels
    together = np.stack(views)
    mean = together.mean((0, 1))
    scores = softmax(together).mean((0, 1)) if average == "scores" else softmax(mean)
    return Expected(scores, mean, len(starts), right)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    whole: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return whole


@pytest.fixture(scope="module")
def run(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("independently") / "run"))


@pytest.fixture(scope="module")
def weights(run: Path) -> dict[str, Tensor]:
    """The newest checkpoint's, read by safetensors alone, in double precision."""
    newest = max(run.glob("checkpoints/*/model.safetensors"), key=lambda path: path.parent.name)
    return {name: value.double() for name, value in load_file(newest).items()}


@pytest.fixture(scope="module")
def videos(store: str) -> dict[str, Video]:
    return dict(videos_of(store))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_scores_are_those_of_a_slow_evaluation(
    name: str, run: Path, weights: dict[str, Tensor], videos: dict[str, Video]
) -> None:
    """Seven videos, one shorter than a clip: every count the same, and every score but for rounding."""
    settings = EvaluateSettings(run=str(run), **PROTOCOLS[name])
    subject = open_subject(settings)
    scores = list(score_videos(subject, subject.rows, settings.batch, workers=1))
    summary = write_evaluation(subject, settings, scores)
    expected = {key: expected_of(weights, video, **PROTOCOLS[name]) for key, video in videos.items()}
    rows = {row["key"]: row for row in table_of(summary)}
    assert sorted(rows) == sorted(expected) and len(rows) == 7
    assert sum(video.pictures.shape[1] == SHORT for video in videos.values()) == 1
    for key, row in rows.items():
        each = expected[key]
        assert row["scores"] == pytest.approx(each.scores, abs=2e-5)
        assert row["logits"] == pytest.approx(each.logits, abs=1e-4)
        assert (row["clips"], row["clips_right"]) == (each.clips, each.clips_right)
        assert row["labels"] == videos[key].labels
    best = {key: np.argsort(-each.scores, kind="stable").tolist() for key, each in expected.items()}
    for k in (1, 5):
        hits = [bool(set(best[key][:k]) & set(video.labels)) for key, video in videos.items()]
        assert summary[f"video{k}"] == pytest.approx(np.mean(hits))
    clips, right = (sum(getattr(each, what) for each in expected.values()) for what in ("clips", "clips_right"))
    assert (summary["clips"], summary["clip1"]) == (clips, pytest.approx(right / clips))
    assert Path(summary["folder"]).name.startswith(f"store-val-{subject.protocol.name}-")


def test_protocols_lie_in_folders_of_their_own(run: Path) -> None:
    folders = {open_subject(EvaluateSettings(run=str(run), **each)).protocol.name for each in PROTOCOLS.values()}
    assert len(folders) == len(PROTOCOLS)


def test_neither_workers_nor_batch_change_a_figure(run: Path) -> None:
    """Seven videos over one, two and three processes, one clip at a time and all at once."""
    settings = EvaluateSettings(run=str(run), clips=3, crops=3, crop=18)
    subject = open_subject(settings)
    whole = list(score_videos(subject, subject.rows, batch=100, workers=1))
    figures = write_evaluation(subject, settings, whole)
    for workers, batch in ((3, 1), (2, 2)):
        # As tasks do, each takes some of the videos, whatever comes first.
        shares = [subject.rows[number::workers] for number in range(workers)]
        parts = [score for rows in reversed(shares) for score in score_videos(subject, rows, batch, workers)]
        again = write_evaluation(subject, settings, parts)
        for one, other in zip(whole, sorted(parts, key=lambda score: score.row), strict=True):
            assert one.scores is not None and one.scores == pytest.approx(other.scores, abs=1e-6)
            assert replace(one, scores=None, logits=None) == replace(other, scores=None, logits=None)
        counted = ("videos", "clips", "clip1", "video1", "video5", "mean_class_video1", "per_class", "intervals")
        assert {name: again[name] for name in counted} == {name: figures[name] for name in counted}
        assert again["calibration"]["ece"] == pytest.approx(figures["calibration"]["ece"], abs=1e-6)
        assert [entry["name"] for entry in again["per_class"]] == CLASSES
