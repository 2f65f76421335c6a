"""Checkpoints: whole or not at all, damage skipped, and only the newest attempt writes."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoints.attempts import Superseded, newest_attempt
from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings, save_checkpoint
from pretrain.checkpoints.checkpoint_manifest import CheckpointManifest
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.checkpoints.retention import kept, to_discard
from sharding.base.errors import UserError
from tests.support.training.checkpoints import begin_attempt, commit, load_newest, load_run, load_step


def checkpoint(step: int) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    model = {
        "weight": torch.randn(3, 4, generator=draw).t(),  # not contiguous
        "tracked": torch.tensor(step),
        "half": torch.randn(2, generator=draw).bfloat16(),
    }
    momentum = {"momentum_buffer:weight": torch.randn(4, 3, generator=draw)}
    average = {"weight": torch.randn(4, 3, generator=draw)}
    return Checkpoint(step, model, momentum, average, {"step": step, "samples": 8 * step, "note": "ü"})


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def assert_is(loaded: Checkpoint | None, step: int) -> None:
    assert loaded is not None
    expected = checkpoint(step)
    assert (loaded.step, loaded.state) == (step, expected.state)
    for part in ("model", "optimizer", "average"):
        tensors, originals = getattr(loaded, part), getattr(expected, part)
        assert tensors.keys() == originals.keys()
        for name, original in originals.items():
            assert torch.equal(tensors[name], original) and tensors[name].dtype == original.dtype


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    folder = save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(40), keep=2)
    assert folder == tmp_path / "checkpoints" / "step-00000040"
    assert sorted(path.name for path in folder.iterdir()) == [
        "average.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert_is(load_newest(tmp_path), 40)
    assert_is(load_run(tmp_path), 40)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"
    }


def test_weights_come_without_what_the_optimizer_keeps(tmp_path: Path) -> None:
    folder = commit(tmp_path, checkpoint(40))
    weights, whole = Checkpointer(tmp_path).load_weights_only(), checkpoint(40)
    assert weights.step == 40 and weights.optimizer == {} and weights.weights.keys() == whole.weights.keys()
    assert all(torch.equal(value, whole.weights[name]) for name, value in weights.weights.items())
    cut(folder)
    with pytest.raises(UserError, match="undamaged"):
        Checkpointer(tmp_path).load_weights_only()


def test_a_step_is_saved_over_and_parts_may_be_empty(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    empty = Checkpoint(3, {"weight": torch.zeros(2)}, {}, {}, {"step": 3})
    folder = save_checkpoint(tmp_path, attempt, empty, keep=2)
    assert not (folder / "average.safetensors").exists()
    found = load_newest(tmp_path)
    assert found is not None and found.optimizer == found.average == {}
    save_checkpoint(tmp_path, attempt, checkpoint(3), keep=2)
    assert_is(load_newest(tmp_path), 3)
    assert names(tmp_path) == ["step-00000003"]


def flip(folder: Path, name: str = "model.safetensors") -> None:
    body = bytearray((folder / name).read_bytes())
    body[-1] ^= 1
    (folder / name).write_bytes(bytes(body))


def cut(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((folder / "manifest.json").read_text())
    change(tree)
    (folder / "manifest.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        cut,
        lambda folder: flip(folder, "state.json"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: os.truncate(folder / "manifest.json", 40),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: rewrite(folder, lambda tree: tree["files"].update({"../../x": {"bytes": 1, "sha256": ""}})),
        lambda folder: rewrite(folder, lambda tree: tree.pop("attempt")),
    ],
)
def test_a_damaged_one_is_skipped_for_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (5, 10):
        newest = save_checkpoint(tmp_path, attempt, checkpoint(step), keep=2)
    damage(newest)
    logger = logging.getLogger("reelscale")
    logger.addHandler(caplog.handler)
    try:
        assert_is(load_newest(tmp_path), 5)
    finally:
        logger.removeHandler(caplog.handler)
    assert str(newest) in caplog.text and "damaged" in caplog.text
    damage(tmp_path / "checkpoints" / "step-00000005")
    for load in (load_newest, load_run):
        with pytest.raises(UserError, match=r"(?s)none of the run's checkpoints is undamaged.*move them away"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_disk_that_does_not_answer_is_no_damage(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that comes and goes: a run that began anew would take the place of sound checkpoints."""
    attempt = begin_attempt(tmp_path)
    for step in (5, 10):
        newest = save_checkpoint(tmp_path, attempt, checkpoint(step), keep=2)
    failures, pauses, opened = [0], list[float](), Path.open

    def failing(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == newest / name and failures[0]:
            failures[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(Path, "read_bytes", lambda self: self.open("rb").read())
    monkeypatch.setattr("pretrain.checkpoints.folder.time.sleep", pauses.append)
    failures[0] = 3
    assert_is(load_newest(tmp_path), 10)
    assert len(pauses) == 3
    failures[0] = 4
    with pytest.raises(UserError, match=f"(?s)cannot be read: Stale file handle.*{newest}"):
        load_newest(tmp_path)


def test_the_network_to_use_has_averaged_weights_where_there_are_some() -> None:
    whole = checkpoint(3)
    assert torch.equal(whole.weights["weight"], whole.average["weight"]) and whole.weights.keys() == whole.model.keys()
    assert torch.equal(whole.weights["half"], whole.model["half"])
    plain = Checkpoint(3, whole.model, whole.optimizer, {}, whole.state)
    assert torch.equal(plain.weights["weight"], whole.model["weight"])


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to start from"):
        load_run(tmp_path / "nothing")


def test_attempts_count_up(tmp_path: Path) -> None:
    assert newest_attempt(tmp_path) == 0
    assert [begin_attempt(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert newest_attempt(tmp_path) == 3


def test_a_superseded_attempt_writes_nothing(tmp_path: Path) -> None:
    old = begin_attempt(tmp_path)
    save_checkpoint(tmp_path, old, checkpoint(5), keep=2)
    new = begin_attempt(tmp_path)
    for step in (5, 10):
        with pytest.raises(Superseded, match=f"attempt {old} .* attempt {new}"):
            save_checkpoint(tmp_path, old, checkpoint(step), keep=2)
    assert names(tmp_path) == ["step-00000005"]
    assert_is(load_newest(tmp_path), 5)
    save_checkpoint(tmp_path, new, checkpoint(10), keep=2)
    assert_is(load_newest(tmp_path), 10)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (1, 2, 30, 100, 2000):
        save_checkpoint(tmp_path, attempt, checkpoint(step), keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (1, 2, 30, 100, 2000)[-keep:]]


def test_what_a_killed_attempt_left_goes(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / f".writing-{begin_attempt(tmp_path):06d}-00000007"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half of it")
    assert load_newest(tmp_path) is None
    save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(7), keep=1)
    assert names(tmp_path) == ["step-00000007"]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_beyond_the_saved_step_make_room(tmp_path: Path, keep: int) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (40, 80):
        save_checkpoint(tmp_path, attempt, checkpoint(step), 2)
    (tmp_path / "checkpoints" / "step-00000080" / "model.safetensors").write_bytes(b"torn")
    save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(50), keep)
    assert names(tmp_path) == ["step-00000040", "step-00000050"][-keep:]
    assert_is(load_newest(tmp_path), 50)


def test_a_short_one_is_not_counted_among_the_kept(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (10, 20):
        save_checkpoint(tmp_path, attempt, checkpoint(step), keep=2)
    cut(tmp_path / "checkpoints" / "step-00000020")
    save_checkpoint(tmp_path, attempt, checkpoint(30), keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000030"]


def test_the_best_is_kept_besides_the_newest(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    for step, clip1 in ((1, 0.2), (2, 0.7), (3, None), (4, 0.7), (5, float("nan")), (6, 0.1), (7, 0.3)):
        state = {"step": step} | ({} if clip1 is None else {"clip1": clip1})
        save_checkpoint(tmp_path, attempt, Checkpoint(step, {"weight": torch.zeros(2)}, {}, {}, state), keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000007"]


manifests = st.builds(
    CheckpointManifest,
    step=st.integers(0, 12),
    attempt=st.integers(1, 3),
    clip1=st.none() | st.floats(0, 1),
    files=st.just({}),
)


@given(st.lists(manifests, max_size=12, unique_by=lambda each: (each.step, each.attempt)), manifests, st.integers(1, 4))
def test_what_is_kept(listed: list[CheckpointManifest], saved: CheckpointManifest, keep: int) -> None:
    older = [each for each in listed if each.attempt <= saved.attempt and each.step != saved.step]
    candidates = [*older, saved]
    left = kept(candidates, saved, keep)
    assert saved in left and all(each in candidates and each.step <= saved.step for each in left)
    steps = {each.step for each in candidates if each.step <= saved.step}
    assert {each.step for each in left} >= set(sorted(steps)[-keep:])
    assert len({each.step for each in left}) == len(left) <= keep + 1
    newest = {step: max((e for e in candidates if e.step == step), key=lambda e: e.attempt) for step in steps}
    judged = [each.clip1 for each in newest.values() if each.clip1 is not None]
    assert not judged or max(judged) in [each.clip1 for each in left]


@given(st.dictionaries(st.integers(), st.none() | manifests, max_size=12), manifests, st.integers(1, 4))
def test_what_goes(places: dict[int, CheckpointManifest | None], saved: CheckpointManifest, keep: int) -> None:
    discarded = to_discard(places, saved, keep)
    own = [each for each in places.values() if each and each.attempt <= saved.attempt]
    left = kept(own, saved, keep)
    for place, manifest in places.items():
        newer = manifest is not None and manifest.attempt > saved.attempt
        assert (place not in discarded) == (newer or manifest in left)


def test_another_versions_checkpoint_is_not_skipped(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    folder = save_checkpoint(tmp_path, attempt, checkpoint(5), keep=1)
    rewrite(folder, lambda tree: tree.update(format=99))
    with pytest.raises(UserError, match="format 99"):
        load_newest(tmp_path)
    save_checkpoint(tmp_path, attempt, checkpoint(10), keep=1)
    assert names(tmp_path) == ["step-00000005", "step-00000010"]


def test_the_last_of_the_newest_attempt_is_the_newest(tmp_path: Path) -> None:
    old, new = begin_attempt(tmp_path / "old"), 2
    save_checkpoint(tmp_path / "old", old, checkpoint(80), keep=2)
    save_checkpoint(tmp_path, new, checkpoint(50), keep=2)
    # An older attempt commits in the moment between its look at the attempts and its rename.
    (tmp_path / "old" / "checkpoints" / "step-00000080").rename(tmp_path / "checkpoints" / "step-00000080")
    assert_is(load_newest(tmp_path), 50)
    save_checkpoint(tmp_path, new, checkpoint(60), keep=2)
    assert names(tmp_path) == ["step-00000050", "step-00000060"]


def test_a_newer_attempts_are_left_alone(tmp_path: Path) -> None:
    for attempt, step in ((2, 20), (2, 40), (1, 30)):
        save_checkpoint(tmp_path, attempt, checkpoint(step), keep=1)
    assert names(tmp_path) == ["step-00000030", "step-00000040"]


def test_killed_while_a_step_is_saved_over_the_former_is_found(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    final = save_checkpoint(tmp_path, attempt, checkpoint(7), keep=1)
    final.rename(final.with_name(f".replaced-{final.name}"))  # between the two renames
    assert_is(load_newest(tmp_path), 7)
    save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(7), keep=1)
    assert names(tmp_path) == ["step-00000007"]
    assert_is(load_newest(tmp_path), 7)


def test_other_ranks_load_what_rank_0_chose(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (5, 10):
        save_checkpoint(tmp_path, attempt, checkpoint(step), keep=2)
    settings = CheckpointSettings()
    assert_is(load_step(tmp_path, 5, attempt, settings), 5)
    for step, of in ((5, attempt + 1), (6, attempt)):  # what an older attempt left on this machine is not it
        with pytest.raises(UserError, match=rf"step {step} of attempt {of}") as refused:
            load_step(tmp_path, step, of, settings)
        assert "checkpoint.store" in refused.value.remedy


def test_the_metrics_come_along(tmp_path: Path) -> None:
    run = tmp_path / "run"
    attempt = begin_attempt(run)
    lines = [json.dumps({"event": "train", "step": step}) + "\n" for step in (1, 2, 3, 2)]
    (run / "metrics.jsonl").write_text("".join(lines) + '{"event": "train", "st')
    folder = save_checkpoint(run, attempt, checkpoint(2), keep=2)
    flawless = [lines[0], lines[1], lines[3]]
    assert (folder / "metrics.jsonl").read_text() == "".join(flawless)
    assert "metrics.jsonl" in json.loads((folder / "manifest.json").read_text())["files"]
    load_newest(run, CheckpointSettings())
    assert (run / "metrics.jsonl").read_text().startswith("".join(lines))  # its own stays
    (run / "metrics.jsonl").unlink()
    load_newest(run)
    assert not (run / "metrics.jsonl").exists()  # a mere look writes nothing
    load_newest(run, CheckpointSettings())
    assert (run / "metrics.jsonl").read_text() == "".join(flawless)
