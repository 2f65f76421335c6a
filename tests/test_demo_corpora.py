"""The demo's corpora: their layout, their split, their clips, and that a class is its pair run backward."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.demo import corpora, motion

PAIRS = [
    (forward, backward)
    for forward, (axis, reverse) in motion.CLASSES.items()
    for backward, (other, other_reverse) in motion.CLASSES.items()
    if axis == other and not reverse and other_reverse
]
TINY = (
    corpora.Corpus("motion", ("pan_left", "pan_right", "zoom_in", "zoom_out"), train=2, val=1),
    corpora.Corpus("motion2", ("speed_up", "slow_down"), train=1, val=1),
)


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    corpora.make_corpora(root, corpora=TINY, say=lambda line: None)
    return root


@pytest.fixture(scope="module")
def footage() -> np.ndarray:
    return corpora.read_footage(corpora.FOOTAGE / "carphone.mp4")


def test_every_class_of_every_split_has_its_clips(made: Path) -> None:
    for corpus in TINY:
        for split in ("train", "val"):
            folders = sorted(path.name for path in (made / corpus.name / split).iterdir())
            assert folders == sorted(corpus.classes)
            for name in folders:
                clips = [
                    path
                    for path in (made / corpus.name / split / name).iterdir()
                    if not path.name.startswith("broken-")
                ]
                assert len(clips) == corpus.count(split)


def test_train_and_validation_come_from_different_videos(made: Path) -> None:
    assert not set(corpora.SOURCES["train"]) & set(corpora.SOURCES["val"])
    for split, sources in corpora.SOURCES.items():
        used = {
            path.stem.rsplit("-", 1)[0]
            for path in made.glob(f"*/{split}/*/*.mp4")
            if not path.name.startswith("broken-")
        }
        assert used <= {Path(source).stem for source in sources}


def test_clips_decode_whole(made: Path) -> None:
    for path in made.glob("*/*/*/*.mp4"):
        if not path.name.startswith("broken-"):
            pictures = decode(path)
            assert len(pictures) == motion.FRAMES
            assert pictures[0].shape == (motion.SIZE, motion.SIZE, 3)


def test_broken_files_do_not_decode(made: Path) -> None:
    for corpus in TINY:
        broken = sorted((made / corpus.name).glob("*/*/broken-*.mp4"))
        assert [path.name for path in broken].count("broken-text.mp4") == 1
        assert [path.name for path in broken].count("broken-cut.mp4") == 1
        for path in broken:
            with pytest.raises(av.error.FFmpegError):
                decode(path)


def test_made_twice_are_the_same_bytes_and_kept_when_there(made: Path, tmp_path: Path) -> None:
    said: list[str] = []
    corpora.make_corpora(tmp_path, corpora=TINY, say=said.append)
    assert digests(tmp_path) == digests(made)
    assert any("clips" in line for line in said)
    said.clear()
    corpora.make_corpora(tmp_path, corpora=TINY, say=said.append)
    assert said == [f"corpora: already in {tmp_path}"]


def test_another_seed_makes_other_clips(made: Path, tmp_path: Path) -> None:
    one = (corpora.Corpus("motion", ("pan_left",), train=1, val=0),)
    folder = corpora.make_corpora(tmp_path, seed=1, corpora=one, processes=1, say=lambda line: None)["motion"]
    clip = next((folder / "train" / "pan_left").glob("*-000.mp4"))
    assert clip.read_bytes() != (made / "motion" / "train" / "pan_left" / clip.name).read_bytes()


def test_the_demo_s_classes_are_all_there_in_pairs() -> None:
    assert len(PAIRS) == len(motion.CLASSES) / 2
    for corpus in corpora.CORPORA:
        for pair in PAIRS:
            assert len(set(pair) & set(corpus.classes)) in (0, 2)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_class_is_its_pair_run_backward(pair: tuple[str, str], footage: np.ndarray) -> None:
    clip, pictures = motion.draw_clip(pair[0], footage, np.random.default_rng(3))
    other, others = motion.draw_clip(pair[1], footage, np.random.default_rng(3))
    assert np.array_equal(pictures, others[::-1])
    assert np.array_equal(motion.render(clip.reversed(), footage), others)
    assert np.array_equal(other.path, clip.path[::-1])
    assert np.array_equal(other.played, clip.played[::-1])


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(motion.CLASSES)), seed=st.integers(0, 2**32 - 1))
def test_the_window_never_leaves_the_footage(name: str, seed: int, footage: np.ndarray) -> None:
    clip, _ = motion.draw_clip(name, footage, np.random.default_rng(seed))
    points = motion.sample_points(clip.path, motion.SIZE).reshape(-1, 2)
    assert points.min() >= 0
    assert (points.max(axis=0) <= [footage.shape[2] - 1, footage.shape[1] - 1]).all()
    assert clip.played.min() >= 0 and clip.played.max() < len(footage)


@settings(max_examples=100, deadline=None)
@given(frames=st.integers(2, 64), seed=st.integers(0, 2**32))
def test_progress_only_rises(frames: int, seed: int) -> None:
    steps = motion.progress(frames, np.random.default_rng(seed))
    assert (np.diff(steps) > 0).all()
    assert np.isclose(steps[0], -0.5) and np.isclose(steps[-1], 0.5)
