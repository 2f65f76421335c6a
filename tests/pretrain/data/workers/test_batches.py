"""Batches as workers make them: flow, rates, long and short videos, all in one stretch of memory."""

from __future__ import annotations

import io
import itertools
import sys
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pretrain.data.device.tensors import FlowBatch, PlaneBatch, joined, made_batch, plane_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.reading.computed_flow import BOUND, is_flow_computed
from pretrain.data.reading.decode import decode_frames
from pretrain.data.reading.store_split import DamagedData, Split, open_split
from pretrain.data.sampling.order import Draw
from pretrain.data.views.frames import evaluation_starts
from pretrain.data.views.resample import source_window
from pretrain.data.views.views import ClipSettings, Normalisation, evaluation_views
from pretrain.data.workers.batches import Batch, BatchMaker
from pretrain.data.workers.planes import plane_arrays
from sharding.base.errors import UserError
from sharding.corpora.manifest import CorpusSettings
from sharding.make.shard import ShardSettings
from sharding.media.flow import LARGEST, dequantised, optical_flow, quantised
from sharding.storage.store import open_store
from tests.demo.corpora import write_video
from tests.pretrain.conftest import CLIP, SHORT
from tests.support.stores import shard

SETTINGS = ClipSettings.model_validate(CLIP)


def memory(size: int) -> memoryview:
    return memoryview(bytearray(size))


def maker(split: Split, clip: ClipSettings = SETTINGS) -> BatchMaker:
    return BatchMaker([split], split, clip, memory)


def draws(split: Split, passed: int = 0) -> list[Draw]:
    return [Draw(passed, *split.place(number)) for number in range(len(split))]


@pytest.fixture(scope="module")
def split(store: str) -> Split:
    return open_split(open_store(store), "train")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> Split:
    """Videos of two sizes, with their optical flow."""
    root = tmp_path_factory.mktemp("moving")
    (root / "corpus" / "class").mkdir(parents=True)
    write_video(root / "corpus" / "class" / "wide.mp4", pictures[:20])
    write_video(root / "corpus" / "class" / "high.mp4", np.ascontiguousarray(pictures[20:44].swapaxes(1, 2)))
    settings = ShardSettings.model_validate(
        {"encode": {"short_edge": 36, "preset": "ultrafast"}, "flow": {"bound": 8.0}}
    )
    shard(root / "corpus", open_store(str(root / "store")), settings, CorpusSettings(validation=0))
    return open_split(open_store(str(root / "store")), "train")


@pytest.fixture(scope="module")
def without_flow(moving: Split, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The same videos, stored without their flow."""
    root = tmp_path_factory.mktemp("still")
    settings = ShardSettings.model_validate({"encode": {"short_edge": 36, "preset": "ultrafast"}})
    corpus = Path(moving.store.url).parent / "corpus"
    shard(corpus, open_store(str(root / "store")), settings, CorpusSettings(validation=0))
    return open_split(open_store(str(root / "store")), "train")


def test_planes_of_one_batch_lie_in_one_stretch() -> None:
    asked: list[int] = []

    def counted(size: int) -> memoryview:
        asked.append(size)
        return memory(size)

    y, uv, steps = plane_arrays(counted, (2, 3, 6, 10), "rgb+flow")
    assert y is not None and uv is not None and steps is not None
    assert (y.shape, uv.shape, steps.shape) == ((2, 3, 6, 10), (2, 3, 2, 3, 5), (2, 3, 2, 6, 10))
    assert asked == [384 + 192 + 720]  # y's 360 bytes and uv's 180, each to the next cache line, and steps
    y[:], uv[:], steps[:] = 1, 2, 3
    assert (y == 1).all() and (uv == 2).all() and (steps == 3).all()
    assert [each is None for each in plane_arrays(memory, (2, 3, 6, 10), "rgb")] == [False, False, True]
    assert [each is None for each in plane_arrays(memory, (2, 3, 6, 10), "flow")] == [True, True, False]


def seen(batch: Batch, clip: int, crop: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Rows and columns of a clip's pictures that a batch holds, and their lumas."""
    planes, view = batch.planes, batch.planes.views[clip]
    rows = slice(*source_window(planes.sizes[clip][0], view.size[0], view.top, crop))
    columns = slice(*source_window(planes.sizes[clip][1], view.size[1], view.left, crop))
    assert planes.origins[clip] == (rows.start, columns.start)
    shown = planes.steps if planes.y is None else planes.y
    assert shown is not None
    held = shown[clip, ..., : rows.stop - rows.start, : columns.stop - columns.start]
    return (rows, columns), held


def test_evaluations_clips_are_those_of_their_frames(split: Split) -> None:
    """All clips of several videos in one batch, each video decoded once, equal to each clip decoded alone."""
    numbers = list(range(len(split)))
    before = split.store.counters.requests
    batch = maker(split).evaluation(numbers, 5)
    assert split.store.counters.requests - before <= len(numbers) + len(split.jobs)
    assert batch.counts == [1 if split.sample(number).frames == SHORT else 5 for number in numbers]
    assert batch.looped == batch.counts.count(1) == 1
    clip = 0
    for number in numbers:
        sample = split.sample(number)
        assert batch.keys[number] == sample.key and batch.labels[number] == sample.labels
        for first in evaluation_starts(sample.frames, 4, 5):
            planes = decode_frames(split.store, sample, [(first + i) % sample.frames for i in range(4)])
            (rows, columns), luma = seen(batch, clip, SETTINGS.crop)
            assert np.array_equal(luma, planes.y[:, rows, columns])
            assert batch.planes.uv is not None
            chroma = planes.uv[..., rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2]
            assert np.array_equal(batch.planes.uv[clip, ..., : chroma.shape[-2], : chroma.shape[-1]], chroma)
            alone = network_input(plane_batch([planes], [batch.planes.views[clip]]), SETTINGS)
            assert np.allclose(network_input(made_batch(batch.planes.part(clip, clip + 1)), SETTINGS), alone, atol=1e-6)
            clip += 1
    assert clip == sum(batch.counts) == len(batch.planes)


def test_the_crops_of_a_clip_share_its_planes(moving: Split) -> None:
    """A wide video and a high one: each crop is what the whole pictures give, and each frame was decoded once."""
    clip = ClipSettings(frames=4, resize=(36, 44), crop=16)
    samples = [moving.sample(number) for number in (0, 1)]  # their records are read
    one, three = (maker(moving, clip).evaluation([0, 1], 2, crops) for crops in (1, 3))
    assert one.planes.shape[-1] < three.planes.shape[-1] and len(three.planes) == len(one.planes) == 4
    assert three.planes.views == one.planes.views and one.bytes == three.bytes
    place = 0
    for sample in samples:
        views = evaluation_views(clip, (sample.height, sample.width), 3)
        for first in evaluation_starts(sample.frames, 4, 2):
            part = three.planes.part(place, place + 1)
            whole = decode_frames(moving.store, sample, range(first, first + 4))
            for view in views:
                alone = network_input(plane_batch([whole], [view]), clip)
                assert np.allclose(network_input(made_batch(part.seen_as([view])), clip), alone, atol=1e-6)
            place += 1


def test_a_rate_of_its_own(split: Split) -> None:
    """At half a video's rate, every second frame."""
    sample = max((split.sample(number) for number in range(len(split))), key=lambda sample: sample.frames)
    clip = SETTINGS.model_copy(update={"fps": sample.fps / 2})
    number = next(number for number in range(len(split)) if split.sample(number).key == sample.key)
    batch = maker(split, clip).evaluation([number], 1)
    starts = evaluation_starts(sample.frames, 7, 1)
    planes = decode_frames(split.store, sample, [starts[0] + 2 * i for i in range(4)])
    (rows, columns), luma = seen(batch, 0, clip.crop)
    assert np.array_equal(luma, planes.y[:, rows, columns])


def flow_as_played(split: Split, number: int) -> np.ndarray:
    """Every picture of a sample's stored flow, dx and dy in pixels: [T, 2, H, W]."""
    sample = split.sample(number)
    assert sample.flow is not None
    tar = split.store.get(sample.tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        member = file.extractfile(f"{sample.key}.flow.mp4")
        assert member is not None
        with av.open(io.BytesIO(member.read())) as container:
            lumas = [frame.to_ndarray()[: 2 * sample.height] for frame in container.decode(video=0)]
    return np.stack([dequantised(luma, sample.flow.bound) for luma in lumas])


def test_flow_is_what_was_stored(moving: Split) -> None:
    clip = ClipSettings(input="flow", frames=4, resize=(36, 44), crop=36)
    batch = maker(moving, clip).evaluation([0, 1], 1)
    made = made_batch(batch.planes)
    assert isinstance(made, FlowBatch) and made.bounds == [8.0, 8.0]
    for number in (0, 1):
        sample = moving.sample(number)
        first = evaluation_starts(sample.frames, 4, 1)[0]
        (rows, columns), steps = seen(batch, number, clip.crop)
        found = (steps.astype(np.float32) - 128) * np.float32(8.0 / 127)
        assert np.allclose(found, flow_as_played(moving, number)[first : first + 4, :, rows, columns])
    assert network_input(made, clip).shape == (2, 2, 4, 36, 36)


def test_flow_that_is_not_stored_is_computed(
    moving: Split, without_flow: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `shard` stores it, but for what its encoding, of pictures and of flow, changes; the last picture included."""
    own = Normalisation(mean=(0.0, 0.0), std=(1.0, 1.0))
    clip = ClipSettings(input="flow", frames=9, stride=3, resize=(36, 44), crop=36, normalisation=own)
    numbers = [0, 1]  # of 20 and 24 frames: the shorter one is looped, past its last picture
    assert not is_flow_computed(moving) and is_flow_computed(without_flow)
    stored, computed = (maker(split, clip).evaluation(numbers, 1) for split in (moving, without_flow))
    assert computed.keys == stored.keys and computed.looped == stored.looped == 2
    assert [*computed.planes.bounds] == [BOUND] * 2 and [*stored.planes.bounds] == [8.0] * 2
    motions = [network_input(made_batch(batch.planes), clip).numpy() for batch in (stored, computed)]
    assert np.abs(motions[0] - motions[1]).mean() < 0.5 * BOUND / LARGEST < np.abs(motions[0]).max() / 4
    assert np.corrcoef(*(motion.ravel() for motion in motions))[0, 1] > 0.7
    whole = [as_computed(without_flow, number) for number in numbers]
    for place, number in enumerate(numbers):
        (rows, columns), steps = seen(computed, place, clip.crop)
        wanted = [3 * step % len(whole[place]) for step in range(9)]
        assert np.array_equal(steps, whole[place][wanted][:, :, rows, columns]), number
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'reelscale\[flow\]'; or shard the corpus into a new store"):
        is_flow_computed(without_flow)


def as_computed(split: Split, number: int) -> np.ndarray:
    """Every picture of a sample's flow in steps, of its decoded frames one by one: [T, 2, H, W]."""
    sample = split.sample(number)
    lumas = decode_frames(split.store, sample, range(sample.frames)).y
    flows = [optical_flow(*pair) for pair in itertools.pairwise(lumas)]
    pictures = [quantised(flow, BOUND).reshape(flow.shape) for flow in flows]
    return np.stack([*pictures, pictures[-1]])


def test_pictures_and_flow_together(moving: Split, without_flow: Split) -> None:
    """Each channel is what a clip of it alone has, also where batches are joined."""
    clip = ClipSettings(input="rgb+flow", frames=4, resize=(36, 44), crop=36)
    alone: list[Any] = [{"input": shown, "frames": 4, "resize": (36, 44), "crop": 36} for shown in ("rgb", "flow")]
    for split in (moving, without_flow):
        apart = []
        for each in map(ClipSettings.model_validate, alone):
            apart.append(network_input(made_batch(maker(split, each).evaluation([0, 1], 2).planes), each))
        parts = [made_batch(maker(split, clip).evaluation([number], 2).planes) for number in (0, 1)]
        both = network_input(joined(parts), clip)
        assert both.shape == (4, 5, 4, 36, 36)
        torch.testing.assert_close(both, torch.cat(apart, 1), rtol=0, atol=1e-5)


def same(one: Batch, other: Batch) -> bool:
    shown = [network_input(made_batch(batch.planes), SETTINGS) for batch in (one, other)]
    return one.keys == other.keys and one.planes.views == other.planes.views and np.array_equal(*shown)


def test_a_draw_says_everything(split: Split) -> None:
    own = draws(split)
    batch = maker(split).training(1, own)
    assert same(maker(split).training(1, own), batch)
    assert maker(split).training(2, own).planes.views != batch.planes.views
    assert maker(split).training(1, draws(split, 1)).planes.views != batch.planes.views
    again = maker(split).training(1, [draw._replace(repeat=1) for draw in own])
    assert again.keys == batch.keys and again.planes.views != batch.planes.views
    one = maker(split).training(1, own[4:5])
    assert one.planes.views == batch.planes.views[4:5]
    assert np.array_equal(seen(one, 0, SETTINGS.crop)[1], seen(batch, 4, SETTINGS.crop)[1])


def test_a_label_and_a_number_name_a_row(split: Split) -> None:
    rows = split.rows(0)
    label = rows.labels(2)[0]
    number = [row for row in range(len(rows)) if label in rows.labels(row)].index(2)
    batch = maker(split).training(1, [Draw(0, 0, number, label)])
    assert batch.keys == [rows.sample(2).key]


def test_what_a_worker_has_met_changes_no_balanced_draw(split: Split) -> None:
    """Damage is known by the row, where the draw of a class names the n-th row that has it."""
    rows = split.rows(0)
    owners: dict[int, list[int]] = {}
    for row in range(len(rows)):
        for label in rows.labels(row):
            owners.setdefault(label, []).append(row)
    drawn, lost = next(
        (Draw(0, 0, number, label), row)
        for label, own in owners.items() for number, row in enumerate(own) if number != row
    )  # fmt: skip
    damaged = DamagedData("checksum", rows.sample(lost).name, rows.sample(lost).tar, "of a test")

    def shown(*met: int) -> tuple[list[str], list[DamagedData]]:
        making = maker(split)
        making._lost |= {(0, 0, row): damaged for row in met}
        batch = making.training(1, [drawn])
        return batch.keys, list(batch.damaged)

    others = [row for row in range(len(rows)) if row != lost]
    assert shown(*others) == shown() == ([rows.sample(lost).key], [])
    keys, told = shown(lost)
    assert told == [damaged] and keys != [rows.sample(lost).key]


def test_batches_join(moving: Split) -> None:
    clip = ClipSettings(frames=4, resize=(36, 44), crop=36)
    whole = made_batch(maker(moving, clip).evaluation([0, 1], 2).planes)
    parts = [made_batch(maker(moving, clip).evaluation([number], 2).planes) for number in (0, 1)]
    together = joined(parts)
    assert isinstance(together, PlaneBatch) and isinstance(whole, PlaneBatch)
    assert together.sizes == whole.sizes and together.y.shape == whole.y.shape
    assert np.allclose(network_input(together, clip), network_input(whole, clip), atol=1e-6)
    flow = ClipSettings(input="flow", frames=4, resize=(36, 44), crop=36)
    flows = [made_batch(maker(moving, flow).evaluation([number], 1).planes) for number in (0, 1)]
    assert network_input(joined(flows), flow).shape == (2, 2, 4, 36, 36)


def test_what_was_read_is_counted(split: Split, tmp_path: Path) -> None:
    fresh = open_split(open_store(split.store.url), "train")
    batch = maker(fresh).training(0, draws(fresh))
    sizes = sum(int(fresh.sample(number).packets.size.sum()) for number in range(len(fresh)))
    assert batch.bytes > 0 and batch.retries == 0 and batch.seconds > 0
    assert len(batch.decode_seconds) == sum(batch.counts) and all(each > 0 for each in batch.decode_seconds)
    assert sum(batch.decode_seconds) < batch.seconds
    assert maker(fresh).training(0, draws(fresh)).bytes <= sizes
