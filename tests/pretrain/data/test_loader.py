"""Clips for the trainer: the same whatever the workers and wherever it begins, and all trouble told."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.data.device.tensors import plane_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import ClipBatch, Loader, target
from pretrain.data.reading.decode import decode_frames
from pretrain.data.sampling.order import sample_randoms
from pretrain.data.sources import DataSettings, Sources, open_sources, order_of
from pretrain.data.views.frames import train_start
from pretrain.data.views.views import VIEW_RANDOMS, ClipSettings, train_view
from pretrain.data.workers.pool import LoaderSettings
from pretrain.engine.distributed import World
from pretrain.training.setup import lanes_of
from sharding.base.errors import UserError
from sharding.format.record import read_record, record_meta, record_path, write_record
from sharding.storage.store import open_store
from tests.pretrain.conftest import CLASSES, CLIP, SHORT

SETTINGS = ClipSettings.model_validate(CLIP)
SEED, LANES, LANE_BATCH = 3, 2, 2


def data(store: str, **order: object) -> DataSettings:
    return DataSettings.model_validate({"store": store, "clip": CLIP, "order": {"block_bytes": 20_000, **order}})


@pytest.fixture(scope="module")
def sources(store: str) -> Sources:
    return open_sources(data(store))


def loader(
    sources: Sources, workers: int = 1, lanes: range = range(LANES), last: int | None = None, **settings: float
) -> Loader:
    order = order_of(sources, data("-"), SEED, LANES, LANE_BATCH)
    given = LoaderSettings.model_validate({"workers": workers, **settings})
    return Loader(sources, order, SETTINGS, given, lanes, last=last)


def kept(clips: ClipBatch) -> ClipBatch:
    """Of memory that is not used again."""
    planes = replace(clips.planes, y=clips.planes.y.clone(), uv=clips.planes.uv.clone())  # type: ignore[call-arg,union-attr]
    return replace(clips, planes=planes, targets=clips.targets.clone())


def shown(made: Loader, first: int = 0) -> list[list[ClipBatch]]:
    with made:
        made.step = first
        return [[kept(clips) for clips in lanes] for lanes in made]


def assert_same(left: list[list[ClipBatch]], right: list[list[ClipBatch]]) -> None:
    """To the last bit of what the network is fed."""
    assert [[clips.keys for clips in lanes] for lanes in left] == [[clips.keys for clips in lanes] for lanes in right]
    for one, other in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        assert torch.equal(network_input(one.planes, SETTINGS), network_input(other.planes, SETTINGS))
        assert torch.equal(one.targets, other.targets)


@pytest.fixture(scope="module")
def whole(sources: Sources) -> list[list[ClipBatch]]:
    """Eight steps by one worker."""
    return shown(loader(sources, last=8))


def test_what_a_step_is(whole: list[list[ClipBatch]]) -> None:
    assert len(whole) == 8 and all(len(lanes) == LANES for lanes in whole)
    clips = whole[0][0]
    assert clips.planes.y.dtype == torch.uint8 and clips.planes.y.shape[:2] == (LANE_BATCH, 4)
    assert clips.targets.shape == (LANE_BATCH, len(CLASSES)) and clips.targets.dtype == torch.float32
    video = network_input(clips.planes, SETTINGS)
    assert video.shape == (LANE_BATCH, 3, 4, 16, 16) and video.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "prefetch"), [(3, 1), (2, 9)])
def test_workers_and_depth_change_nothing(
    sources: Sources, whole: list[list[ClipBatch]], workers: int, prefetch: int
) -> None:
    assert_same(shown(loader(sources, workers, last=8, prefetch=prefetch)), whole)


@pytest.mark.slow
def test_a_lane_of_very_many_clips(sources: Sources) -> None:
    many = 20_000
    clip = SETTINGS.model_copy(update={"frames": 1})
    order = order_of(sources, data("-"), SEED, 1, many)
    with Loader(sources, order, clip, LoaderSettings(workers=1), range(1), last=1) as made:
        ((clips,),) = made
    assert clips.planes.y.shape[0] == len(clips.keys) == many
    assert {len(list(same)) for _, same in itertools.groupby(sorted(clips.keys))} == {many // 13, many // 13 + 1}


def test_it_begins_anywhere(sources: Sources, whole: list[list[ClipBatch]]) -> None:
    assert_same(shown(loader(sources, 2, last=8), first=5), whole[5:])
    assert shown(loader(sources, last=8), first=8) == []


@pytest.mark.slow
def test_a_position_goes_on_where_it_was_taken(sources: Sources, whole: list[list[ClipBatch]]) -> None:
    with loader(sources, last=8) as made:
        steps = iter(made)
        begun = [[kept(clips) for clips in next(steps)] for _ in range(3)]
        state = made.state_dict()
        steps.close()
    other = loader(sources, 2, last=8)
    other.load_state_dict(state)
    with other:
        rest = [[kept(clips) for clips in lanes] for lanes in other]
    assert_same(begun + rest, whole)


def test_a_position_of_another_order_is_refused(sources: Sources) -> None:
    state = loader(sources).state_dict()
    with pytest.raises(UserError, match="another order of samples \\(other: seed\\)"):
        loader(sources).load_state_dict({**state, "order": {**state["order"], "seed": 4}})


def test_a_loader_goes_on_after_it_was_left(sources: Sources, whole: list[list[ClipBatch]]) -> None:
    with loader(sources, last=8) as made:
        for step, _ in enumerate(made):
            if step == 2:
                break
        assert made.step == 3
        assert_same([[kept(clips) for clips in lanes] for lanes in made], whole[3:])


@pytest.mark.slow
@pytest.mark.parametrize(("stops", "ranks"), [((3,), (1, 2)), ((1, 4), (2, 1, 2))])
def test_a_run_goes_on_with_other_ranks(
    sources: Sources, whole: list[list[ClipBatch]], stops: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    """Stopped and resumed, it has shown the lanes of an undisturbed run, step by step."""
    result: list[list[ClipBatch]] = []
    for first, last, world in zip((0, *stops), (*stops, 8), ranks, strict=True):
        shares = [
            shown(loader(sources, 1, lanes_of(World(rank, world, device=None), LANES), last), first)  # type: ignore[arg-type]
            for rank in range(world)
        ]
        result += [list(itertools.chain(*lanes)) for lanes in zip(*shares, strict=True)]
    assert_same(result, whole)


def test_clips_and_targets_are_the_samples(sources: Sources, whole: list[list[ClipBatch]]) -> None:
    """A pass and more, every clip made again from the order, the formulas and the planes."""
    order = order_of(sources, data("-"), SEED, LANES, LANE_BATCH)
    (split,) = sources.splits
    seen = []
    for step, lanes in enumerate(whole):
        for lane, clips in enumerate(lanes):
            video = network_input(clips.planes, SETTINGS)
            for place, draw in enumerate(order.lane(step, lane)):
                number = split.first(draw.shard) + draw.row
                sample = split.sample(number)
                start, *view = sample_randoms(SEED, draw, number, 1 + VIEW_RANDOMS)
                first = train_start(sample.frames, 4, start)
                planes = decode_frames(split.store, sample, [(first + i) % sample.frames for i in range(4)])
                seen_as = train_view(SETTINGS, (sample.height, sample.width), view)
                expected = network_input(plane_batch([planes], [seen_as]), SETTINGS)
                torch.testing.assert_close(video[place : place + 1], expected, rtol=0, atol=1e-5)
                assert clips.keys[place] == sample.key
                assert clips.targets[place].nonzero().flatten().tolist() == list(sample.labels)
                seen.append((draw.pass_number, number))
    assert sorted(number for passed, number in seen if passed == 0) == list(range(13))


def test_another_pass_is_another_view(sources: Sources) -> None:
    """The same sample in four passes: four views; another seed, another one."""
    views: dict[str, list[object]] = {}
    for clips in itertools.chain(*shown(loader(sources, last=14))):
        for key, view in zip(clips.keys, clips.planes.views, strict=True):
            views.setdefault(key, []).append(view)
    assert all(len(found) >= 4 for found in views.values())
    assert sum(len(set(map(str, found))) == len(found) for found in views.values()) > 10


@pytest.mark.slow
def test_it_tells_what_it_did(sources: Sources) -> None:
    with loader(sources, last=4) as made:
        output, batches = made.stats, []
        for step, lanes in enumerate(made, start=1):
            batches.append(lanes)
            time.sleep(0.2)  # the next steps are made meanwhile, and not told of
            assert output.clips == step * LANES * LANE_BATCH
    assert output.clips == 4 * LANES * LANE_BATCH == sum(len(clips.keys) for lanes in batches for clips in lanes)
    assert output.wait_seconds > 0 and output.decode_seconds > 0 and output.bytes > 1000 and output.retries == 0
    (split,) = sources.splits
    short = {split.sample(number).key for number in range(13) if split.sample(number).frames == SHORT}
    assert output.looped_clips == sum(key in short for lanes in batches for clips in lanes for key in clips.keys)


def test_labels_share_the_weight() -> None:
    assert target((1,), 4).tolist() == [0, 1, 0, 0]
    assert target((0, 3), 4).tolist() == [0.5, 0, 0, 0.5]
    row = target((0, 1, 2), 4)
    assert row.sum() == pytest.approx(1) and row[3] == 0 and row.dtype == torch.float32


Spoil = Callable[[bytearray, int, int], bytes]

# What webdataset's own reader does not notice, or only half (see the sharding tests): body, offset and size of a video.
DAMAGE: dict[str, Spoil] = {
    "cut at a member": lambda body, at, size: bytes(body[: at - 512]),
    "cut inside a header": lambda body, at, size: bytes(body[: at - 200]),
    "cut between a sample's files": lambda body, at, size: bytes(body[: at + -(-size // 512) * 512]),
    "cut inside a payload": lambda body, at, size: bytes(body[: at + size // 2]),
    "flipped": lambda body, at, size: bytes(b ^ 16 * (at <= i < at + size) for i, b in enumerate(body)),
}


@pytest.fixture()
def copied(store: str, tmp_path: Path) -> str:
    return str(shutil.copytree(store, tmp_path / "copy"))


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_every_damage_is_noticed_named_and_filled(copied: str, whole: list[list[ClipBatch]], how: str) -> None:
    """Whatever lies before the damage and in other tars is shown as ever; in the other places stand other samples."""
    opened = open_store(copied)
    (split,) = open_sources(data(copied)).splits
    tar = split.sample(0).tar
    sizes = {row["key"]: row["size"] for row in _rows(copied, split.jobs[0])}
    inside = [split.sample(number) for number in range(split.shard_sizes[0])]
    first = min(inside[1:], key=lambda sample: sample.packets.start)  # a video that others follow
    whole_body = bytearray(opened.get(tar))
    opened.put(tar, DAMAGE[how](whole_body, first.packets.start, sizes[first.key]))
    body = opened.get(tar)
    lost = {
        sample.key
        for sample in inside
        if body[sample.packets.start :][: sizes[sample.key]] != whole_body[sample.packets.start :][: sizes[sample.key]]
    }
    assert lost
    result = []
    for workers in (1, 2):
        made = loader(open_sources(data(copied)), workers, last=8, damaged=0.9)
        result.append(shown(made))
        output = [str(damaged) for damaged in made.damage_budget.met.values()]
        assert {sample.key for sample in inside if any(sample.key in text for text in output)} == lost
        assert made.damage_budget.samples == len(lost) and all(tar in text for text in output)
        assert any("the index says" in text for text in output) == (how != "flipped")
    assert_same(*result)
    for lanes, undisturbed in zip(result[0], whole, strict=True):
        for clips, other in zip(lanes, undisturbed, strict=True):
            for key, expected in zip(clips.keys, other.keys, strict=True):
                assert key not in lost and (key == expected) == (expected not in lost)


def _rows(store: str, job: str) -> list[dict[str, object]]:
    return read_record(open_store(store), "train", job).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("lost_file", ["record", "part"])
def test_a_missing_shard_is_filled_too(copied: str, lost_file: str) -> None:
    sources = open_sources(data(copied))
    (split,) = sources.splits
    lost = {split.sample(number).key for number in range(split.shard_sizes[0])}
    open_store(copied).delete(record_path("train", split.jobs[0]) if lost_file == "record" else split.paths(0)[0])
    made = loader(open_sources(data(copied)), last=8, damaged=0.9)
    keys = {key for lanes in shown(made) for clips in lanes for key in clips.keys}
    assert not keys & lost and made.damage_budget.samples == len(lost)
    assert split.jobs[0] in str(next(iter(made.damage_budget.met.values())))
    kinds = {damaged.kind for damaged in made.damage_budget.met.values()}
    assert kinds == ({"record"} if lost_file == "record" else {"missing"})


@pytest.mark.slow
def test_a_shard_whose_record_names_other_tars_than_the_index_is_filled_too(copied: str) -> None:
    store = open_store(copied)
    sources = open_sources(data(copied))
    (split,) = sources.splits
    table = read_record(store, "train", split.jobs[0])
    rows, meta = table.to_pylist(), record_meta(table.schema)
    meta["parts"][0]["path"] = split.paths(1)[0]
    store.delete(record_path("train", split.jobs[0]))
    write_record(store, "train", split.jobs[0], rows, meta)
    made = loader(open_sources(data(copied)), last=8, damaged=0.9)
    keys = {key for lanes in shown(made) for clips in lanes for key in clips.keys}
    assert not keys & {row["key"] for row in rows} and made.damage_budget.samples == len(rows)


def test_a_share_of_damage_is_of_the_store_on_any_number_of_ranks(store: str) -> None:
    """Passes are shuffled anew: in time a rank meets the damage of all of it."""
    for lanes in (range(LANES), range(1)):
        with loader(open_sources(data(store)), lanes=lanes, damaged=0.5) as made:
            assert made.damage_budget.allowed == 6  # of 13


@pytest.mark.slow
def test_too_much_damage_stops_with_the_list(copied: str) -> None:
    sources = open_sources(data(copied))
    (split,) = sources.splits
    tars = sorted({split.sample(number).tar for number in range(13)})
    open_store(copied).put(tars[1], b"")
    with pytest.raises(UserError, match=r"[34] samples are damaged; data\.loader\.damaged=0\.2 allows 2") as caught:
        shown(loader(sources, last=8, damaged=0.2))
    assert str(caught.value).count(f"in {tars[1]}: the object ends early") in (3, 4)
    assert "shards verify" in caught.value.remedy
    for tar in tars:
        open_store(copied).put(tar, b"")
    with pytest.raises(UserError, match="100 samples, one after the other, are damaged") as caught:
        shown(loader(sources, last=8, damaged=1))
    assert all(f"the tar in {tar}: it has 0 bytes" in str(caught.value) for tar in tars)


@pytest.mark.slow
def test_without_leave_no_damage_passes(copied: str) -> None:
    sources = open_sources(data(copied))
    tar = sources.splits[0].sample(4).tar
    open_store(copied).put(tar, b"")
    with pytest.raises(UserError, match=r"samples are damaged; data\.loader\.damaged=0 allows 0"):
        shown(loader(sources, last=8, damaged=0))
