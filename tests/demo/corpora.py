"""Makes the demo's raw corpora: folders of labelled .mp4 clips of motion, cut from real footage."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tests.demo import motion

# No video of one split is in the other: what is learnt must be the motion, not the scene.
SOURCES: dict[str, tuple[str, ...]] = {
    "train": ("balance_cam01.mp4", "bigbuckbunny.mp4", "bikes.mp4", "cup.mp4", "lego.mov", "tree.avi"),
    "val": ("carphone.mp4", "slackline.mp4"),
}
FOOTAGE = Path(__file__).resolve().parent.parent / "data" / "footage"
MARKER = "corpora.json"
FPS = 25
_VERSION = 1  # raise it when the same settings begin to give other clips
_SHORT_SIDE = 160  # pixels of the footage the window moves over
# x264's mb-tree reads memory it never set: with it the same pictures give other bytes from run to run.
_ENCODER = {"crf": "14", "preset": "veryfast", "threads": "1", "x264-params": "no-mbtree=1"}


@dataclass(frozen=True)
class Corpus:
    """A corpus: its folder's name, its classes, and how many clips each class has in a split."""

    name: str
    classes: tuple[str, ...]
    train: int
    val: int

    def count(self, split: str) -> int:
        """Clips a class has in a split."""
        return {"train": self.train, "val": self.val}[split]


CORPORA = (
    Corpus("motion", tuple(motion.CLASSES)[:8], train=48, val=12),
    Corpus("motion2", tuple(motion.CLASSES)[8:], train=32, val=8),
)


@dataclass(frozen=True)
class _Job:
    """A clip to make: its class, its footage (a .npy file) and the file it becomes."""

    name: str
    footage: Path
    target: Path
    seed: tuple[int, int]


def make_corpora(
    root: Path,
    footage: Path = FOOTAGE,
    seed: int = 0,
    corpora: Sequence[Corpus] = CORPORA,
    processes: int = 2,
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Makes every corpus as ROOT/<corpus>/{train,val}/<class>/<video>-<number>.mp4.

    Two broken files are among each. The same seed, corpora and footage give the same bytes. Corpora that are
    there already are kept; others of the same names in ROOT are replaced. Returns each corpus's folder.

    Raises: FileNotFoundError where footage is missing.
    """
    folders = {corpus.name: root / corpus.name for corpus in corpora}
    digest = _digest(footage, seed, corpora)
    if _complete(root, digest):
        say(f"corpora: already in {root}")
        return folders
    started = time.monotonic()
    (root / MARKER).unlink(missing_ok=True)
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    with (
        tempfile.TemporaryDirectory(prefix="reelscale-footage-") as scratch,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        decoded = _decode_all(pool, footage, corpora, Path(scratch))
        say(f"footage: {len(decoded)} videos decoded")
        for corpus in corpora:
            _make_clips(pool, list(_jobs(corpus, root, decoded, seed)), corpus.name, say)
            _break_files(root / corpus.name / "train", corpus.classes)
    (root / MARKER).write_text(json.dumps({"digest": digest}) + "\n")
    say(f"corpora: made in {time.monotonic() - started:.0f} s")
    return folders


def read_footage(path: Path, short_side: int = _SHORT_SIDE) -> NDArray[np.uint8]:
    """A video's frames, made small: RGB uint8 [frames, height, width, 3], `short_side` pixels one way."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            ratio = short_side / min(frame.width, frame.height)
            small = frame.reformat(
                width=round(frame.width * ratio),
                height=round(frame.height * ratio),
                format="rgb24",
                interpolation="AREA",
            )
            pictures.append(small.to_ndarray())
    return np.stack(pictures)


def write_video(path: Path, pictures: NDArray[np.uint8], fps: int = FPS) -> None:
    """Writes RGB pictures [frames, height, width, 3] as H.264 in an .mp4 file, the same bytes every time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _digest(footage: Path, seed: int, corpora: Sequence[Corpus]) -> str:
    """Of all that decides what the corpora are: settings, the motions' code, and the footage's bytes."""
    settings = [_VERSION, seed, _SHORT_SIDE, motion.SIZE, motion.FRAMES, FPS, _ENCODER, SOURCES]
    total = hashlib.sha256(json.dumps([settings, [asdict(corpus) for corpus in corpora]]).encode())
    total.update(Path(motion.__file__).read_bytes())
    for name in sorted(name for names in SOURCES.values() for name in names):
        total.update(hashlib.sha256((footage / name).read_bytes()).digest())
    return total.hexdigest()


def _complete(root: Path, digest: str) -> bool:
    """Whether ROOT's marker says that these very corpora are there, whole."""
    try:
        return bool(json.loads((root / MARKER).read_text())["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _decode_all(pool: Executor, footage: Path, corpora: Sequence[Corpus], scratch: Path) -> dict[str, Path]:
    """Decodes every source in use once, into .npy files the clips' processes map; by source name."""
    targets = {
        name: scratch / f"{name}.npy"
        for split, names in SOURCES.items()
        for name in names[: max(corpus.count(split) for corpus in corpora)]
    }
    waiting = [pool.submit(_decode_one, footage / name, target) for name, target in targets.items()]
    for future in waiting:
        future.result()
    return targets


def _decode_one(source: Path, target: Path) -> None:
    np.save(target, read_footage(source))


def _jobs(corpus: Corpus, root: Path, decoded: dict[str, Path], seed: int) -> Iterator[_Job]:
    """The clips of a corpus; each class takes the split's sources in turn, so all have the same scenes."""
    for split, sources in SOURCES.items():
        for name in corpus.classes:
            folder = root / corpus.name / split / name
            folder.mkdir(parents=True)
            for number in range(corpus.count(split)):
                source = sources[number % len(sources)]
                path = f"{corpus.name}/{split}/{name}/{number}"
                target = folder / f"{Path(source).stem}-{number:03d}.mp4"
                yield _Job(name, decoded[source], target, (seed, zlib.crc32(path.encode())))


def _make_clips(pool: Executor, jobs: list[_Job], corpus: str, say: Callable[[str], None]) -> None:
    every = max(1, len(jobs) // 4)
    waiting = [pool.submit(_make_one, job) for job in jobs]
    for done, future in enumerate(as_completed(waiting), start=1):
        future.result()
        if done % every == 0 or done == len(jobs):
            say(f"{corpus}: {done}/{len(jobs)} clips")


def _make_one(job: _Job) -> None:
    pictures = np.load(job.footage, mmap_mode="r")
    _, frames = motion.draw_clip(job.name, pictures, np.random.default_rng(job.seed))
    write_video(job.target, frames)


def _break_files(train: Path, classes: Sequence[str]) -> None:
    """Puts a text file and a file cut in the middle among the clips, as a real corpus has them."""
    (train / classes[0] / "broken-text.mp4").write_text("This is not a video.\n")
    folder = train / classes[len(classes) // 2]
    whole = min(path for path in folder.glob("*.mp4")).read_bytes()
    # An .mp4 file's index comes last: half a file has none.
    (folder / "broken-cut.mp4").write_bytes(whole[: len(whole) // 2])


def main() -> None:
    """Makes the corpora in the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="where the corpora go, e.g. demo/corpora")
    parser.add_argument("--footage", type=Path, default=FOOTAGE, help="the folder of real videos")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_corpora(arguments.root, arguments.footage, arguments.seed)


if __name__ == "__main__":
    main()
