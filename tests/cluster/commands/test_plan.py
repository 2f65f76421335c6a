"""`reelscale plan`, beside the arithmetic of a reader with published figures and a pocket calculator."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Say
from tests.support.commands import refused, succeeded

RECIPE = Path(__file__).parents[3] / "configs/r2plus1d/table4/sports1m-r2plus1d-34-32f-pretrain.yaml"
EIGHT_BY_EIGHT = ("--nodes", "8", "--gpus-per-node", "8", "--gpu", "h200")


def planned(say: Say, *arguments: str | Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(succeeded(say("plan", *arguments, "--json")).stdout)
    return tree


def figures(tree: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(section, each["name"]): each["value"] for section, rows in tree["figures"].items() for each in rows}


def source(tree: dict[str, Any], name: str) -> str:
    return next(each["source"] for each in tree["inputs"] if each["name"] == name)


def test_sports_1m_on_eight_nodes_is_what_a_reader_works_out(say: Say) -> None:
    """The published: 199.0 GMACs at 128² (152.4 at 112²), 45 epochs of 1 M clips, 989.5 TFLOP/s, 419 in 54 days."""
    tree = planned(say, RECIPE, *EIGHT_BY_EIGHT, "plan.mfu=0.26", "plan.price_per_gpu_hour=4")
    got = figures(tree)
    gflop_a_clip = 199.0 * (112 / 128) ** 2 * 2 * 3  # 914
    a_gpu = 0.95 * 0.26 * 989.5e3 / gflop_a_clip  # 267 clips/s
    computing = 32 / a_gpu  # 0.120 s
    exchange = 2 * 4 * 63.65e-3 * 7 / 8 / 50  # GB over 50 GB/s: 9 ms
    step = computing + exchange
    steps = 45e6 / (64 * 32)  # 21,973
    hours = steps * step / 3600
    gpu_hours = 64 * (hours + 70 / 3600)
    assert got["run", "training"] == pytest.approx(gflop_a_clip, rel=0.01)
    assert got["run", "steps"] == pytest.approx(steps, rel=0.001)
    assert got["step", "computing"] == pytest.approx(computing, rel=0.1)
    assert got["step", "gradient exchange"] == pytest.approx(exchange, rel=0.15)  # the links inside a node come on top
    assert got["step", "step"] == pytest.approx(step, rel=0.1)
    assert got["step", "rate"] == pytest.approx(2048 / step, rel=0.1)
    assert got["in all", "steps"] == pytest.approx(hours, rel=0.1)
    assert got["in all", "GPU-hours"] == pytest.approx(gpu_hours, rel=0.1)
    assert got["in all", "cost"] == pytest.approx(4 * gpu_hours, rel=0.1)
    assert got["in all", "time"] == pytest.approx(gpu_hours / 64 / 24, rel=0.1)
    between_days = 54 * 16_384 / 419 / 64  # 33: a month
    assert got["checkpoints and interruptions", "between two"] == pytest.approx(between_days, rel=0.01)
    assert got["checkpoints and interruptions", "interruptions"] == pytest.approx(hours / 24 / between_days, rel=0.1)
    checkpoint_gb = 2 * 4 * 63.7e-3  # weights and momentum
    assert got["checkpoints and interruptions", "checkpoint"] == pytest.approx(checkpoint_gb, rel=0.01)
    best = math.sqrt(2 * checkpoint_gb / 10 * between_days * 86_400)  # 540 s
    assert got["checkpoints and interruptions", "best interval"] == pytest.approx(best / 3600, rel=0.02)
    clip_kb = (32 + 16) * 600 / 1000
    assert got["reading", "a node reads"] == pytest.approx(2048 / step / 8 * clip_kb / 1e6, rel=0.1)
    assert tree["binds"] == "GPUs"


def test_the_same_by_what_an_h200_was_measured_to_do(say: Say, tmp_path: Path) -> None:
    """568 clips/s of 16 frames: half of it at 32 frames, and 45 M clips through 64 such GPUs."""
    figure = {"figure": "network_clips_per_second", "value": 568, "gmacs": 76.2, "precision": "bf16"}
    (tmp_path / "models.json").write_text(json.dumps({"measured": [{**figure, "device": "NVIDIA H200"}]}))
    (tmp_path / "flow.json").write_text("{}")
    tree = planned(say, RECIPE, *EIGHT_BY_EIGHT, "--measured", "models.json", "flow.json")
    got = figures(tree)
    step = 2048 / 64 / (568 / 2 * 0.95) + 2 * 4 * 63.65e-3 * 7 / 8 / 50
    assert got["step", "step"] == pytest.approx(step, rel=0.1)
    assert got["in all", "steps"] == pytest.approx(45e6 / 2048 * step / 3600, rel=0.1)
    assert source(tree, "a GPU's network alone").startswith("measured: models.json")
    assert "flow.json holds no figure that a plan uses" in tree["notes"]


def test_every_figure_says_where_it_comes_from(say: Say) -> None:
    tree = planned(say, RECIPE, *EIGHT_BY_EIGHT, "plan.cores_per_node=64")
    for each in tree["inputs"]:
        words = each["source"] or each["arithmetic"]
        assert words, each
        assert each["arithmetic"] or words.startswith(("measured", "setting", "published", "assumed")), each
    assert all(each["arithmetic"] for rows in tree["figures"].values() for each in rows)
    assert source(tree, "cores per node") == "setting plan.cores_per_node"
    assert source(tree, "peak").startswith("published") and source(tree, "MFU").startswith("assumed")
    assert any("lanes=64" in note for note in tree["notes"]) and any("not read" in note for note in tree["notes"])


@pytest.mark.slow
def test_a_store_that_is_there_is_read(say: Say, recipe: Path, store: Path) -> None:
    tree = planned(say, recipe, f"data.store={store}", "--nodes", "1", "--gpus-per-node", "2")
    assert source(tree, "samples").startswith("measured: the store's index")
    got = figures(tree)
    assert got["run", "passes"] == pytest.approx(24 / 6) and tree["notes"] == []
    assert got["run", "steps"] == 6 and got["step", "all-reduce by tree"] == got["step", "all-reduce by ring"]


@pytest.mark.slow
def test_a_bucket_answers_so_many_requests(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    tree = planned(say, RECIPE, *EIGHT_BY_EIGHT, "data.store=s3://bucket/sports1m")
    assert tree["binds"] == "the store's requests" and "requests a second" in tree["buy_first"]
    assert figures(tree)["step", "rate"] == pytest.approx(5500, rel=0.01)


def test_for_people(say: Say) -> None:
    said = succeeded(say("plan", RECIPE, *EIGHT_BY_EIGHT)).stdout
    for words in ("GPU-hours", "[published: Llama 3", "= 64 lanes × 32", "what binds: GPUs", "buy first: "):
        assert words in said, words
    assert all(len(line) < 200 for line in said.splitlines())


def test_a_run_that_never_ends_is_valid_json_and_a_table(say: Say) -> None:
    never = ("plan.interruptions_per_gpu_day=1000", "checkpoint.every_steps=100000")
    tree = planned(say, RECIPE, *EIGHT_BY_EIGHT, *never)
    assert figures(tree)["in all", "time"] is None and "checkpoint.every_steps" in tree["buy_first"]
    assert "never" not in succeeded(say("plan", RECIPE, *EIGHT_BY_EIGHT, *never)).stderr


@pytest.mark.parametrize(("a_day", "every"), [(0.005, 1000), (5, 1000), (5, 100)])
def test_the_arithmetic_of_interruptions_gives_their_number(say: Say, a_day: float, every: int) -> None:
    often = (f"plan.interruptions_per_gpu_day={a_day}", f"checkpoint.every_steps={every}")
    tree = planned(say, RECIPE, *EIGHT_BY_EIGHT, *often)
    got = {each["name"]: each for each in tree["figures"]["checkpoints and interruptions"]}
    terms = re.findall(r"([\d,]+) × \(e\^\(([\d.,]+) s / ([\d.,]+) s\) − 1\)", got["interruptions"]["arithmetic"])
    numbers = [[float(number.replace(",", "")) for number in term] for term in terms]
    met = sum(count * math.expm1(length / between) for count, length, between in numbers)
    assert met == pytest.approx(got["interruptions"]["value"], rel=0.02)
    steps, step, validation = re.findall(r"[\d.,]+(?:e-\d+)?", got["interval"]["arithmetic"])[:3]
    interval = float(steps.replace(",", "")) * (float(step) + float(validation))
    assert interval / 3600 == pytest.approx(got["interval"]["value"], rel=0.001)
    work = figures(tree)["in all", "steps"] + figures(tree)["in all", "validations"]
    lost = met * got["one costs"]["value"] + got["training waits"]["value"] + 70
    assert 24 * figures(tree)["in all", "time"] - work == pytest.approx(lost / 3600, rel=0.05)


def test_mistakes(say: Say, recipe: Path, tmp_path: Path) -> None:
    refused(say("plan", RECIPE, "--gpu", "abacus"), "no data sheet of a GPU 'abacus'", "H200", "plan.clips_per_second")
    refused(say("plan", RECIPE, *EIGHT_BY_EIGHT, "lanes=24"), "24 lanes do not spread over 64 GPUs", "multiple of 64")
    refused(say("plan", RECIPE, "--nodes", "none"), "plan.nodes", "'none'")
    refused(say("plan", RECIPE, "plan.core_per_node=3"), "plan.core_per_node", "did you mean cores_per_node")
    refused(say("plan", RECIPE, "--measured", "bench/none.json"), "no such measured file", "bench/none.json")
    refused(say("plan", recipe, "data.store=nowhere"), "nothing says how many videos", "plan.videos=N")
    assert list(tmp_path.iterdir()) == []
    assert succeeded(say("plan", RECIPE, "--gpu", "abacus", "plan.clips_per_second=100"))
