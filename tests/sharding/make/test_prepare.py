"""What is left to do for a store: resumed, appended to, retried, and refused with the difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sharding.base.errors import UserError
from sharding.format import index, record
from sharding.format.generations import generations, planned_jobs, planned_videos
from sharding.inspect.summary import summary
from sharding.make.prepare import prepare, prepare_retry, stored_settings
from sharding.make.shard import ShardSettings, make_shard
from sharding.storage.store import Store, open_store
from tests.support.stores import READING, SETTINGS, content, make, retry, shard


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def parts(store: Store) -> dict[str, bytes]:
    return {path: data for path, data in content(store).items() if path.startswith(("train/", "val/"))}


def uris(store: Store) -> list[str]:
    found = record.list_records(store)
    return sorted(row["uri"] for shard in found for row in record.read_record(store, *shard).to_pylist())


def test_other_settings_are_refused_with_the_difference(corpus: Path, store: Store) -> None:
    shard(corpus, store)
    before = content(store)
    other = ShardSettings.model_validate({**SETTINGS.model_dump(), "encode": {"short_edge": 48}, "videos_per_shard": 5})
    with pytest.raises(UserError, match=r"encode.short_edge: there 32, here 48") as caught:
        prepare(str(corpus), store, other, READING)
    assert "videos_per_shard: there 4, here 5" in caught.value.what and "another STORE" in caught.value.remedy
    assert content(store) == before and stored_settings(store) == SETTINGS


def test_only_what_is_missing_is_made(corpus: Path, store: Store, tmp_path: Path) -> None:
    prepared = prepare(str(corpus), store, SETTINGS, READING)
    jobs = list(prepared.remaining_jobs())
    assert len(jobs) == prepared.planned_count >= 3
    make_shard(*jobs[1], store, SETTINGS)
    with pytest.raises(UserError, match="did not finish"):
        index.current_index(store)
    again = prepare(str(corpus), store, SETTINGS, READING)
    assert list(again.remaining_jobs()) == [jobs[0], *jobs[2:]]
    assert again.remaining_count == len(jobs) - 1 and again.remaining_videos == 8 - len(jobs[1][0].videos)
    make(again)
    untouched = open_store(str(tmp_path / "untouched"))
    shard(corpus, untouched)
    assert content(store) == content(untouched)


def test_new_videos_are_a_new_generation_and_the_old_ones_stay(corpus: Path, store: Store, pieces: list[Path]) -> None:
    shard(corpus, store)
    before, first = parts(store), index.current_index(store)
    shutil.copyfile(pieces[0], corpus / "calm" / "new.mp4")
    (corpus / "brisk").mkdir()
    shutil.copyfile(pieces[1], corpus / "brisk" / "new.mp4")
    (corpus / "lively" / "piece5.mp4").unlink()
    prepared = shard(corpus, store)
    assert any("2 new videos: generation 1" in note for note in prepared.notes)
    assert any("1 planned videos are not in this corpus" in note for note in prepared.notes)
    after, second = parts(store), index.current_index(store)
    assert before.items() <= after.items()
    assert {path.split("/")[1][:3] for path in after.keys() - before.keys()} == {"g1-"}
    assert second.version > first.version and index.read_index(store, first.version) == first
    assert second.classes == ["calm", "lively", "brisk"] == index.require_head(store)["classes"]
    assert len(uris(store)) == 8 == sum(split.samples for split in second.splits.values())
    assert [plan.number for plan in generations(store)] == [0, 1]
    assert prepare(str(corpus), store, SETTINGS, READING).remaining_count == 0


def test_a_corpus_that_moved_is_the_same(corpus: Path, store: Store, tmp_path: Path) -> None:
    jobs = list(prepare(str(corpus), store, SETTINGS, READING).remaining_jobs())
    make_shard(*jobs[0], store, SETTINGS)
    moved = corpus.rename(tmp_path / "elsewhere")
    shard(moved, store)
    assert len(uris(store)) == 6 and len(generations(store)) == 1


def test_a_name_that_two_corpora_share_moves_neither(
    corpus: Path, store: Store, tmp_path: Path, pieces: list[Path]
) -> None:
    prepare(str(corpus), store, SETTINGS, READING)
    (tmp_path / "other" / "calm").mkdir(parents=True)
    for name in ("piece0", "another"):
        shutil.copyfile(pieces[0], tmp_path / "other" / "calm" / f"{name}.mp4")
    roots = {(job.id[:2], root) for job, root in shard(tmp_path / "other", store).remaining_jobs()}
    assert roots == {("g0", str(corpus)), ("g1", str(tmp_path / "other"))}
    assert len(uris(store)) == 7 and summary(store)["failures"] == {"empty": 1, "not_video": 1}


def test_what_is_left_out_is_what_the_newest_reading_left_out(store: Store, tmp_path: Path, pieces: list[Path]) -> None:
    (tmp_path / "list.csv").write_text("uri,label\n" + "".join(f"{name}.mp4,walk\n" for name in "abcd"))
    shutil.copyfile(pieces[0], tmp_path / "a.mp4")
    shard(tmp_path / "list.csv", store)
    assert summary(store)["left_out"] == {"missing": 3}
    shutil.copyfile(pieces[1], tmp_path / "b.mp4")
    shard(tmp_path / "list.csv", store)
    assert summary(store)["left_out"] == {"missing": 2} and summary(store)["samples"] == 2


def test_a_video_that_changed_is_told_and_stays(corpus: Path, store: Store, pieces: list[Path]) -> None:
    shard(corpus, store)
    before = content(store)
    shutil.copyfile(pieces[0], corpus / "calm" / "empty.mp4")
    prepared = shard(corpus, store)
    assert any("calm/empty.mp4" in note for note in prepared.notes), prepared.notes
    assert content(store) == before


def test_a_retry_makes_new_shards_of_what_failed_alone(corpus: Path, store: Store, pieces: list[Path]) -> None:
    shard(corpus, store)
    before = parts(store)
    shutil.copyfile(pieces[0], corpus / "calm" / "empty.mp4")
    prepared = retry(store)
    assert prepared.remaining_count >= 1
    assert {video.uri for video in planned_videos(store, generations(store)[1])} == {
        "calm/empty.mp4",
        "lively/note.mp4",
    }
    assert before.items() <= parts(store).items()
    assert uris(store).count("calm/empty.mp4") == 1 and len(uris(store)) == 7
    assert index.current_index(store).failures == {"not_video": 1} == summary(store)["failures"]
    again = retry(store)
    assert [plan.kind for plan in again.plans] == ["corpus", "retry", "retry"]
    assert index.current_index(store).failures == {"not_video": 1} == summary(store)["failures"]
    shutil.copyfile(pieces[0], corpus / "lively" / "note.mp4")
    retry(store)
    assert index.current_index(store).failures == {} == summary(store)["failures"] and len(uris(store)) == 8
    assert "no video failed" in retry(store).notes[0]


def test_many_generations_take_no_more_listings(
    corpus: Path, store: Store, pieces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    for number in range(3):
        shutil.copyfile(pieces[number], corpus / "calm" / f"new{number}.mp4")
        shard(corpus, store)
        seen: list[str] = []
        walk = type(store).walk
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "walk", lambda self, prefix="": (seen.append(prefix), walk(self, prefix))[1])  # noqa: B023
            assert sum(summary(store)["failures"].values()) == 2
        listings.append(sorted(seen))
    assert listings[0] == listings[1] == listings[2] and len(generations(store)) == 3


def test_a_retry_that_was_stopped_goes_on(corpus: Path, store: Store) -> None:
    shard(corpus, store)
    begun = prepare_retry(store, SETTINGS)
    jobs = list(begun.remaining_jobs())
    again = prepare_retry(store, SETTINGS)
    assert list(again.remaining_jobs()) == jobs and len(generations(store)) == 2
    assert begun.notes == again.notes == ("2 failed videos or segments are tried again",)
    assert [job for job, _ in prepare(str(corpus), store, SETTINGS, READING).remaining_jobs()] == [
        job for job, _ in jobs
    ]


def test_a_retry_reads_where_the_files_are_now(corpus: Path, store: Store, tmp_path: Path, pieces: list[Path]) -> None:
    shard(corpus, store)
    (tmp_path / "mended" / "calm").mkdir(parents=True)
    shutil.copyfile(pieces[0], tmp_path / "mended" / "calm" / "empty.mp4")
    retry(store, root=str(tmp_path / "mended"))
    assert "calm/empty.mp4" in uris(store)


def two_corpora(corpus: Path, store: Store, tmp_path: Path, pieces: list[Path]) -> Path:
    """A second corpus, of a good and a bad video, in the same store; three videos failed in all."""
    (tmp_path / "other" / "calm").mkdir(parents=True)
    shutil.copyfile(pieces[0], tmp_path / "other" / "calm" / "good.mp4")
    (tmp_path / "other" / "calm" / "bad.mp4").write_bytes(b"")
    shard(corpus, store)
    shard(tmp_path / "other", store)
    assert summary(store)["failures"] == {"empty": 2, "not_video": 1}
    return tmp_path / "other"


def test_a_retry_over_two_corpora_reads_each_where_it_is(
    corpus: Path, store: Store, tmp_path: Path, pieces: list[Path]
) -> None:
    other = two_corpora(corpus, store, tmp_path, pieces)
    for path in (corpus / "calm" / "empty.mp4", corpus / "lively" / "note.mp4", other / "calm" / "bad.mp4"):
        shutil.copyfile(pieces[1], path)
    prepared = retry(store)
    assert prepared.notes == ("3 failed videos or segments are tried again",)
    tried = {(root, video.uri) for job, root in prepared.remaining_jobs() for video in job.videos}
    mine = {(str(corpus), "calm/empty.mp4"), (str(corpus), "lively/note.mp4")}
    assert tried == mine | {(str(other), "calm/bad.mp4")}
    assert [plan.kind for plan in generations(store)] == ["corpus", "corpus", "retry", "retry"]
    assert summary(store)["failures"] == {} and summary(store)["samples"] == 10
    assert retry(store).notes == ("no video failed, so there is none to try again",)


def test_two_retries_at_once_try_each_video_once(
    corpus: Path, store: Store, tmp_path: Path, pieces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sharding.make.prepare as module

    two_corpora(corpus, store, tmp_path, pieces)
    real, calls = module.add_generation, 0

    def late(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:  # between this command's generations another one plans the second
            prepare_retry(store, SETTINGS)
        return real(*arguments)

    monkeypatch.setattr(module, "add_generation", late)
    prepared = prepare_retry(store, SETTINGS)
    assert prepared.notes == ("3 failed videos or segments are tried again",)
    tried = [video.uri for job, _ in prepared.remaining_jobs() for video in job.videos]
    assert sorted(tried) == ["calm/bad.mp4", "calm/empty.mp4", "lively/note.mp4"]
    assert [plan.kind for plan in generations(store)] == ["corpus", "corpus", "retry", "retry"]


def test_not_one_good_video(corpus: Path, store: Store, pieces: list[Path]) -> None:
    for path in corpus.glob("*/piece*.mp4"):
        path.write_bytes(b"")
    shard(corpus, store)
    assert not index.has_index(store) and summary(store)["samples"] == 0
    assert summary(store)["failures"] == {"empty": 7, "not_video": 1}
    shutil.copyfile(pieces[0], corpus / "calm" / "piece0.mp4")
    retry(store)
    assert summary(store)["samples"] == 1


def test_two_commands_that_begin_at_once_plan_the_same(corpus: Path, store: Store, tmp_path: Path) -> None:
    first, second = (prepare(str(corpus), store, SETTINGS, READING) for _ in range(2))
    assert first.plans == second.plans and list(first.remaining_jobs()) == list(second.remaining_jobs())
    made = [make_shard(job, root, store, SETTINGS) for job, root in first.remaining_jobs()]
    assert [make_shard(job, root, store, SETTINGS).made_by_another for job, root in second.remaining_jobs()] == [
        True
    ] * len(made)


def test_a_generation_taken_meanwhile_is_compared_and_the_next_is_taken(
    corpus: Path, store: Store, pieces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sharding.make.prepare as module

    real = module.add_generation

    def late(*arguments: object) -> object:
        monkeypatch.setattr(module, "add_generation", real)
        shard(corpus, store)  # another command, which saw less of the corpus
        for name in ("one", "two"):
            shutil.copyfile(pieces[0], corpus / "calm" / f"{name}.mp4")
        return real(*arguments)

    shutil.copyfile(pieces[0], corpus / "calm" / "seen.mp4")
    monkeypatch.setattr(module, "add_generation", late)
    prepared = prepare(str(corpus), store, SETTINGS, READING)
    assert prepared.remaining_count == 0 and len(prepared.plans) == 1
    assert sum(len(job.videos) for job in planned_jobs(store, generations(store)[0])) == 9


def labelled(store: Store) -> dict[str, str]:
    """Class name by uri, as the store says it."""
    classes = index.current_index(store).classes
    rows = [row for found in record.list_records(store) for row in record.read_record(store, *found).to_pylist()]
    return {row["uri"]: classes[row["labels"][0]] for row in rows}


@pytest.mark.parametrize("begun", [False, True])
def test_two_commands_with_other_classes_at_once_mix_no_labels(
    begun: bool, corpus: Path, store: Store, tmp_path: Path, pieces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sharding.make.prepare as module

    real = module.add_generation
    for name, classes in (("second", ("asleep", "brisk")), ("third", ("busy", "awake"))):
        for number, label in enumerate(classes):
            (tmp_path / name / label).mkdir(parents=True)
            shutil.copyfile(pieces[number], tmp_path / name / label / f"{name}.mp4")
    if begun:
        shard(corpus, store)

    def late(*arguments: object) -> object:
        monkeypatch.setattr(module, "add_generation", real)
        shard(tmp_path / "third", store)  # another command
        return real(*arguments)

    monkeypatch.setattr(module, "add_generation", late)
    shard(tmp_path / "second", store)
    found = labelled(store)
    assert len(found) == (10 if begun else 4) and all(uri.startswith(f"{label}/") for uri, label in found.items())
    assert index.require_head(store)["classes"] == index.current_index(store).classes


def test_a_class_of_which_nothing_is_new_takes_no_number(store: Store, tmp_path: Path, pieces: list[Path]) -> None:
    for name in ("one", "two", "three"):
        shutil.copyfile(pieces[0], tmp_path / f"{name}.mp4")
    (tmp_path / "list.csv").write_text("uri,label\none.mp4,walk\ntwo.mp4,run\n")
    shard(tmp_path / "list.csv", store)
    (tmp_path / "list.csv").write_text("uri,label\none.mp4,walk\ntwo.mp4,sprint\n")
    shard(tmp_path / "list.csv", store)
    (tmp_path / "list.csv").write_text("uri,label\none.mp4,walk\ntwo.mp4,run\nthree.mp4,swim\n")
    shard(tmp_path / "list.csv", store)
    assert index.require_head(store)["classes"] == index.current_index(store).classes == ["run", "walk", "swim"]
    assert labelled(store)["three.mp4"] == "swim"


def test_a_damaged_plan_is_told(corpus: Path, store: Store) -> None:
    (plan,) = prepare(str(corpus), store, SETTINGS, READING).plans
    data = bytearray(store.get(plan.file))
    data[len(data) // 2] ^= 1
    store.put(plan.file, bytes(data))
    with pytest.raises(UserError, match="plan is damaged"):
        list(planned_videos(store, plan))
    store.delete(plan.file)
    with pytest.raises(UserError, match="plan is missing"):
        list(planned_videos(store, plan))


def test_a_store_whose_names_were_decomposed_goes_on_with_composed_ones(
    store: Store, tmp_path: Path, pieces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    corpus = tmp_path / "corpus"
    for name, piece in zip((f"{decomposed}/a", f"{decomposed}/b", "tea/a", "tea/b"), pieces, strict=False):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece, corpus / f"{name}.mp4")
    with monkeypatch.context() as before:  # as it was when names were kept as they came
        for module in ("corpora.entries.labels", "format.generations", "format.index"):
            before.setattr(f"sharding.{module}.nfc", str)
        shard(corpus, store)
        assert index.current_index(store).classes == [decomposed, "tea"]
    assert index.current_index(store).classes == [composed, "tea"]
    (corpus / composed).mkdir()
    shutil.copyfile(pieces[4], corpus / composed / "new.mp4")
    prepared = shard(corpus, store)
    assert any("1 new videos: generation 1" in note for note in prepared.notes)
    assert index.current_index(store).classes == [composed, "tea"] == index.require_head(store)["classes"]
    rows = [row for shard in record.list_records(store) for row in record.read_record(store, *shard).to_pylist()]
    assert {row["uri"]: row["labels"] for row in rows}[f"{composed}/new.mp4"] == [0]
