"""The benchmarks compare what they say: the same function on both sides, every contender timed."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pretrain.data.sources import DataSettings
from pretrain.engine.autotune.choose import candidate_names
from pretrain.engine.distributed import leave_world, start_world
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.planning.measured import clip_rate, read_measured
from sharding.corpora.manifest import Video
from sharding.inspect.verify import verify
from sharding.media.encoder import EncodeSettings
from sharding.media.h264 import packet_table
from sharding.media.input.source import Source
from sharding.media.transcode import VideoSettings, transcode
from sharding.storage.store import open_store
from tests.benchmarks import encoding, loader, models, store, training, transforms
from tests.benchmarks.support import busy, children, loader_ways, models_steps, tables
from tests.benchmarks.support.loader_s3 import enlarged
from tests.benchmarks.support.loader_stores import segmented
from tests.benchmarks.support.models_steps import Case, Contender, plain_network

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "benchmarks").rglob("*.py")), ids=lambda path: path.stem
)
def test_every_benchmark_can_be_loaded(path: Path) -> None:
    importlib.import_module(".".join(path.relative_to(Path(__file__).parents[1]).with_suffix("").parts))


@pytest.mark.parametrize("settings", [{"depth": 10, "width": 0.125}, {"depth": 50, "width": 0.0625}])
def test_the_plain_network_is_ours_without_our_classes(settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    ours = build_model(ModelSettings.model_validate(settings), 400, 8).double()
    plain = plain_network(ours, ModelSettings.model_validate(settings))
    clips = torch.randn(2, 3, 8, 16, 16, dtype=torch.float64)
    assert_close(plain(clips), ours(clips), rtol=1e-9, atol=1e-9)
    assert all(type(module).__module__.startswith(("torch.", "tests.")) for module in plain.modules())


def test_every_contender_of_a_case_is_timed() -> None:
    """Ours as the engine takes its step, and as a network alone."""
    case = Case(ModelSettings(depth=10, width=0.125), 8, 16, 2, half=True, threads=1)
    result = models.compare(case, torch.device("cpu"), rounds=2, quick=True)
    paths = candidate_names(torch.device("cpu"))
    assert list(result["rows"]) == [
        "plain conv3d", "plain channels last",
        *(f"ours, {path}" for path in paths), *(f"ours, {path}, network alone" for path in paths),
    ]  # fmt: skip
    assert result["chosen"] in paths and result["summary"]["ours"] == f"ours, {result['chosen']}"
    for row in result["rows"].values():
        assert 0 < row["median_clips_per_second"] <= row["clips_per_second"] and row["mfu"] > 0, row
        assert 0.05 < row["busy_share"] < 1.2, row
    assert all(name in models.table(result) for name in result["rows"])


def test_a_step_through_the_engine_is_the_networks() -> None:
    """Both contenders of a path train alike: what is timed differs by who calls it alone."""
    case = Case(ModelSettings(depth=10, width=0.125), 8, 16, 2, half=False, threads=1)
    (result,) = children.in_a_child(weights_after_two_steps, case, patience=100.0)
    assert result["engine"].keys() == result["alone"].keys()
    for name, value in result["alone"].items():
        assert_close(torch.tensor(result["engine"][name]), torch.tensor(value), rtol=1e-4, atol=1e-6)
    assert result["engine"]["fc.weight"] != result["new"]["fc.weight"]


def weights_after_two_steps(case: Case) -> Iterator[dict[str, dict[str, list[Any]]]]:
    """Of the fresh network, by the engine and without; in a process of its own, which joins a process group."""
    world = start_world()
    network = models_steps.fresh_network(case, world.device)
    result = {"new": {name: value.tolist() for name, value in network.state_dict().items()}}
    for name, contender in (("engine", Contender("planar", engine=True)), ("alone", Contender("planar"))):
        network = models_steps.fresh_network(case, world.device)
        step = models_steps.Step(contender, network, case, world, None)
        for _ in range(2):
            step.take()
        result[name] = {name: value.tolist() for name, value in network.state_dict().items()}
    yield result
    leave_world()


def test_on_a_gpu_a_contender_of_ours_has_its_own_process() -> None:
    """So that one whose kernel faults takes no other with it; quick leaves out what is never the best."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    best = Contender(channels_last=True, compiled=True)
    assert set(models.peers(gpu, quick=False)) - set(models.peers(gpu, quick=True)) == {Contender(compiled=True)}
    assert best in models.peers(gpu, quick=True) and best not in models.peers(cpu, quick=True)
    paths = candidate_names(gpu)
    result = models.ours(gpu, False, paths[-1])
    assert result == [*(Contender(path, engine=True) for path in paths), Contender(paths[-1])]
    assert models.ours(gpu, True, paths[-1]) == result[-2:]
    assert len(models.ours(gpu, True, "")) == len(paths)  # the choice failed: all that may be
    everyone = [*models.peers(gpu, False), *result]
    assert models.groups(everyone, gpu) == [everyone[:4], *([each] for each in result)]
    assert models.groups(everyone, cpu) == [everyone]
    (judged,) = models.cases(gpu)
    assert (judged.model.depth, judged.clip, judged.batch, judged.half) == (34, (3, 16, 112, 112), 32, True)
    assert {case.batch for case in models.cases(gpu, every=True) if case.model.depth == 152} == {32}
    assert len(models.cases(gpu, every=True)) == 9 and len(models.cases(gpu, depth=18)) == 3


def model_row(clips: float, median: float, mfu: float = 0.3) -> dict[str, float]:
    """A row of the models benchmark, of 32 clips a step."""
    rates = {"clips_per_second": clips, "median_clips_per_second": median}
    return {"seconds": 32 / clips, "median_seconds": 32 / median, "mfu": mfu, "busy_share": 0.9, **rates}


def test_ours_is_judged_against_the_best_peer() -> None:
    result = {
        "plain conv3d": model_row(200, 190), "plain channels last": model_row(300, 290),
        "plain channels last, compiled": model_row(480, 400), "ours, planar": model_row(900, 900),
        "ours, rows": model_row(576, 500, 0.37), "ours, rows, network alone": model_row(1000, 1000),
    }  # fmt: skip
    output = models.summary(result, "rows", torch.device("cuda"))
    assert output["best_peer"] == "plain channels last, compiled" and output["ours"] == "ours, rows"
    values = {each["what"]: (round(each["value"], 3), each["passed"]) for each in output["judged"]}
    assert values == {
        "ours / best peer": (1.2, False), "ours / plain": (2.88, False), "of the matrix product": (0.37, True)
    }  # fmt: skip
    assert output["ours_over_best_peer_by_medians"] == pytest.approx(1.25)
    line = models.verdict(result, output)
    assert "best peer: plain channels last, compiled, 480.0 clips/s" in line
    assert "ours (a run's choice): ours, rows, 576.0 clips/s" in line
    assert "ours / best peer = 1.20 (by medians 1.25) (goal 1.25: falls short)" in line
    assert "of the matrix product 37.0% (goal 36 %: PASS)" in line
    on_cpu = models.summary(result, "rows", torch.device("cpu"))
    assert all(each["passed"] is None for each in on_cpu["judged"]) and "goal" not in models.verdict(result, on_cpu)
    mine = [Contender("planar", engine=True), Contender("rows", engine=True), Contender("rows")]
    assert models.fastest(mine, result) == "planar"  # where what a run would choose is not known
    assert models.fastest(mine, {each.name: {"failed": "faulty"} for each in mine}) == ""
    failed = models.summary(result | {"ours, rows": {"failed": "misaligned address"}}, "rows", torch.device("cuda"))
    assert not any(each["passed"] for each in failed["judged"])
    assert "ours, rows, not measured" in models.verdict(result | {"ours, rows": {"failed": "faulty"}}, failed)


@pytest.mark.parametrize(
    ("work", "said"), [((os._exit, [3]), "died with exit code 3"), ((time.sleep, [0, 600]), "silent for 4 s")]
)
def test_a_process_that_fails_is_told_of(work: tuple[Any, list[int]], said: str) -> None:
    assert list(children.in_a_child(map, abs, [-1], patience=200.0)) == [1]  # what starts processes has started
    heard = []
    with pytest.raises(children.ChildFailed, match=said):
        for each in children.in_a_child(map, *work, patience=4.0):
            heard.append(each)
    assert heard == [None] * (len(work[1]) - 1)


def test_a_process_that_nobody_listens_to_is_ended() -> None:
    """Also one that does not end by itself, as after a GPU's fault."""
    begin = time.perf_counter()
    with closing(children.in_a_child(map, time.sleep, [0, 600], patience=200.0)) as said:
        assert next(said) is None
    assert time.perf_counter() - begin < 200


def test_a_device_is_busy_while_anything_runs_on_it() -> None:
    events = [
        {"cat": "kernel", "ts": 10, "dur": 20}, {"cat": "kernel", "ts": 15, "dur": 5},  # within the first
        {"cat": "gpu_memcpy", "ts": 25, "dur": 10}, {"cat": "kernel", "ts": 50, "dur": 1},
        {"cat": "gpu_user_annotation", "ts": 0, "dur": 100}, {"ph": "M", "name": "process_name"},
    ]  # fmt: skip
    assert busy.busy_seconds(events) == pytest.approx(26e-6)
    assert busy.busy_seconds([]) == 0


def test_a_trace_of_steps_is_read() -> None:
    """What the CPU did, here: the reading is a GPU's."""
    x = torch.randn(300, 300)
    events = busy.traced(lambda: x @ x, torch.device("cpu"), 3)
    assert sum(each.get("name") == "aten::mm" for each in events) == 3
    assert busy.busy_seconds(events, ("cpu_op",)) > 0


def test_a_variant_is_encoded_decoded_and_compared() -> None:
    """Twice the same bytes with the same settings, others with others."""
    frames = encoding.source_frames(encoding.FOOTAGE / "carphone.mp4", EncodeSettings())[:32]
    ours, cabac = encoding.variants(quick=True)[:2]
    data, seconds = encoding.encoded(frames, ours)
    assert seconds > 0 and data == encoding.encoded(frames, ours)[0] != encoding.encoded(frames, cabac)[0]
    assert list(packet_table(data)["packet_key"].nonzero()[0]) == [0, 16]
    row = encoding.measured(ours, {"carphone.mp4": frames}, 0.01)
    assert row["bytes_per_frame"] == len(data) / 32 and row["clips_per_second"] > 0
    assert 0.9 < row["lowest_ssim"] == row["ssim"] < 1 and "in use" in tables.table([row], encoding.COLUMNS)
    picture = encoding.luma(frames[0])
    assert encoding.ssim(picture, picture) == pytest.approx(1)
    assert encoding.ssim(picture, 255 - picture) < 0.1


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "tree.avi"])
def test_what_is_stored_is_close_to_the_resized_source(name: str) -> None:
    """The videos of the least similarity, as the table of the benchmark has it."""
    video = Video(name, (0,), "train")
    (clip,) = transcode(Source(str(encoding.FOOTAGE), name), video, VideoSettings())
    stored = encoding.decoded(clip.data)
    sources = [encoding.luma(frame) for frame in encoding.source_frames(encoding.FOOTAGE / name, EncodeSettings())]
    looks = range(0, min(len(sources), len(stored)), 10)
    assert sum(encoding.ssim(stored[look], sources[look]) for look in looks) / len(looks) >= encoding.GOOD


def test_every_way_to_the_networks_input_is_timed_and_compared() -> None:
    rows = transforms.compare("carphone.mp4", rounds=1)
    errors = {row["way"]: row["error"] for row in rows}
    assert errors[transforms.PLAIN] < 0.51 and errors["ours"] == errors["ours, into the same memory"] < 0.01
    assert len(errors) == 5 and all(error < 40 for error in errors.values())
    assert all(row["clips_per_second"] > 0 and row["way"] in transforms.table(rows) for row in rows)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> loader_ways.Task:
    """Four clips of a store, and the same video as webdataset's users have it."""
    store, tar = segmented(tmp_path_factory.mktemp("clips"), ("carphone.mp4",), 1)
    return loader_ways.task(DataSettings(store=store), 1, 4, tar=tar)


def test_everyone_shows_the_same_frames(task: loader_ways.Task) -> None:
    """Ours exactly, in one process or by the loader; others' swscale rounds more."""
    got: list[torch.Tensor] = []
    with ExitStack() as stack:
        found, _ = loader.contenders(task, stack, lambda clip: got.append(clip))
        shown = {}
        for contender in found:
            if contender.floats and contender.peer != "today":
                got.clear()
                contender.run(len(task.clips))
                shown[contender.name] = torch.cat([clip.view(-1, 3, 16, 112, 112) for clip in got])
    ours = shown.pop("ours, in one process")
    assert_close(shown.pop("ours, loader of 1 worker"), ours)
    assert set(shown) >= {"PyAV, RGB", "PyAV, RGB 128 x 171"}
    for name, theirs in shown.items():
        assert (theirs - ours).abs().mean((1, 2, 3, 4)).max() < 0.04, name  # a frame too late: 0.05 and more


def test_every_way_to_clips_is_timed_and_judged(task: loader_ways.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SPENT_A_ROUND", 0.0)
    result = loader.compared(task, rounds=2)
    assert {row["name"] for row in result["rows"]} >= {"bare libavcodec", "PyAV, RGB", "x264 + webdataset, RGB"}
    assert all(row["clips_per_cpu_second"] > 0 and len(row["cpu_ms_per_round"]) == 2 for row in result["rows"])
    whole = next(row for row in result["rows"] if row["name"] == "PyAV, RGB")
    ours = next(row for row in result["rows"] if row["name"] == "ours, in one process")
    assert 0 < ours["bytes_per_clip"] < whole["bytes_per_clip"] and ours["ratio"] == 1
    assert len({(line["what"].split(",")[0], line["output"]) for line in result["judged"]}) >= 6
    assert all(row["name"] in loader.table(result) for row in result["rows"])


def test_an_enlarged_store_is_whole(task: loader_ways.Task, tmp_path: Path) -> None:
    """The store of the first-batch figures: as many bytes as told, all as their record says."""
    large, parts = open_store(tmp_path / "large"), tmp_path / "parts"
    written = enlarged(open_store(task.store.url), large.url, parts, 10**6)
    found = verify(large, "all", 1)
    assert found.damages == [] and found.samples == -(-(10**6) // (written // found.samples)) > 1
    assert 10**6 <= written <= found.bytes


def test_every_contender_of_training_tells_its_windows(
    task: loader_ways.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once here, which the benchmark never does."""
    monkeypatch.setattr(training.os, "cpu_count", lambda: 1)  # a thread each
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (recipe,) = training.cases(torch.device("cpu"), True, [1]).values()

    def seen(name: str) -> training.Seen:
        result = training.Seen(name, 1)
        training.Bench(tmp_path / name, recipe, task.store.url, windows=2).run(result)
        return result

    with ThreadPoolExecutor() as threads:
        result = list(threads.map(seen, ["ours", "model", "loader", "plain"]))
    for each in result:
        (windows,) = each.rounds
        assert [window.clips for window in windows] == [2, 2], each
        assert all(window.seconds > 0 for window in windows) and not each.failed
        assert 0 < each.first_lines[0] < 200
    assert all(0 <= each.logged("data_wait_ratio") <= 1 for each in (result[0], result[3]))


def test_a_plan_reads_what_benchmarks_write(tmp_path: Path) -> None:
    """Each benchmark's figures, made as its file has them, of a run that was not measured here."""
    row = {"name": "ours", "ranks": 2, "clips_per_second": 500.0}
    case = {"rows": [row, {"name": "ours", "ranks": 1, "failed": "no"}], "gmacs_per_clip": 76.2, "precision": "bf16"}
    case |= {"saving": {"seconds": 0.1}, "first_step": {"first": 60.0, "later": 30.0}, "checkpoint_bytes": 10**9}
    result = {"rows": {"ours": {"median_clips_per_second": 560.0}, "plain": {}}, "summary": {"ours": "ours"}}
    result |= {"precision": "bf16", "gflops_per_clip": 457.2}
    loaded = {"name": "ours, loader of 1 worker", "clips_per_cpu_second": 400.0, "bytes_per_clip": 20_000.0}
    ranges = [{"bytes": store.SIZES["20 kB"], "cpu_ms_wall_ms": {"ours": [0.5, 2.0]}}]
    files = {
        "training": training.measured_figures({"case": case}, "NVIDIA H200"),
        "models": models.measured_figures([result, {**result, "summary": {"ours": None}}], "NVIDIA H200"),
        "loader": loader.measured_figures({"rows": [loaded]}),
        "store": store.measured_figures(ranges),
    }
    for name, figures in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"measured": figures}))
    measured = read_measured([str(tmp_path / f"{name}.json") for name in files])
    assert measured.silent == []
    assert {(figure.figure, figure.value) for _, figure in measured.figures} == {
        ("training_clips_per_second", 250.0), ("checkpoint_pause_seconds", 0.1), ("start_seconds", 30.0),
        ("network_clips_per_second", 560.0), ("clips_per_core_second", 400.0), ("bytes_per_clip", 20_000.0),
        ("range_cpu_seconds", 0.0005),
    }  # fmt: skip
    rate = clip_rate(measured, "H200", True, 152.4e9)
    assert rate and rate.is_training and rate.rate == pytest.approx(125)
