"""Names with control characters: stored as they are, and shown so that they do nothing."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pretrain.data.reading.store_split import open_split
from pretrain.run_folder import Run
from sharding.format.index import current_index
from sharding.storage.store import open_store
from tests.cluster.conftest import SMALL, Say
from tests.support.commands import ROOT, refused, succeeded

EVIL = "a\x1b]0;evil\x07\x1b[31mb\rc\nd\u202ee\x9b1m"
ALONE = ("launcher=none", "workers=1")


def harmless(text: str) -> bool:
    return not {"\x1b", "\x07", "\r", "\u202e", "\x9b"} & set(text) and "\nd" not in text


@pytest.fixture()
def corpus(pieces: list[Path], broken: dict[str, Path], tmp_path: Path) -> Path:
    root = tmp_path / f"corpus {EVIL}"
    for split in ("train", "val"):
        for name in (f"class {EVIL}", "calm"):
            folder = root / split / name
            folder.mkdir(parents=True)
            shutil.copyfile(pieces[0], folder / f"good {EVIL}.mp4")
            shutil.copyfile(broken["note.mp4"], folder / f"bad {EVIL}.mp4")
    return root


@pytest.mark.slow
def test_sharding_and_looking(say: Say, corpus: Path, tmp_path: Path) -> None:
    store = f"store {EVIL}"
    results = [say("shard", corpus, store, *SMALL, *ALONE)]
    results += [say("shards", "inspect", store), say("shards", "inspect", store, "--out", f"look {EVIL}")]
    results += [say("shards", "verify", store), say("shards", "retry", store, *ALONE)]
    (tmp_path / store / "train" / f"stray {EVIL}.tar").touch()
    tar = next((tmp_path / store / "val").glob("g*.tar"))
    tar.write_bytes(tar.read_bytes()[:-2000])
    results.append(say("shards", "verify", store))
    assert [each.returncode for each in results] == [0, 0, 0, 0, 0, 1], results
    for each in results:
        assert harmless(each.stdout + each.stderr), each
    assert r"\x1b]0;evil\x07" in results[0].stdout and r"stray a\x1b]0;evil" in results[-1].stdout
    index = current_index(open_store(tmp_path / store))
    assert index.classes == ["calm", f"class {EVIL}"]
    split = open_split(open_store(tmp_path / store), "train")
    assert {split.sample(number).uri for number in range(len(split))} == {
        f"train/{name}/good {EVIL}.mp4" for name in ("calm", f"class {EVIL}")
    }
    shown = json.loads(say("shards", "inspect", store, "--json").stdout)
    assert shown["classes"] == index.classes


def test_mistakes(say: Say, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {store: none}\n")
    file = tmp_path / f"{EVIL}.safetensors"
    file.write_bytes(b"no weights")
    outputs = [
        refused(say("pretrain", f"{EVIL}.yaml")),
        refused(say("pretrain", "recipe.yaml", f"{EVIL}=1")),
        refused(say("pretrain", "recipe.yaml", f"seed={EVIL}")),
        refused(say("pretrain", "recipe.yaml", "seed", EVIL)),
        refused(say("shard", f"absent {EVIL}", "store")),
        refused(say("shards", "verify", f"absent {EVIL}")),
        refused(say("models", "--name", EVIL)),
        refused(say("import", str(file), "run")),
        refused(say("report", f"run {EVIL}")),
        refused(say("evaluate", "recipe.yaml", f"run={EVIL}")),
    ]
    for usage in (("shards", "verify", "store", EVIL), ("shards", EVIL), ("models", f"--{EVIL}"), (EVIL,)):
        result = say(*usage)
        assert result.returncode == 2 and "Traceback" not in result.stderr and r"\x1b]0;evil" in result.stderr
        outputs.append(result.stdout + result.stderr)
    for each in outputs:
        assert harmless(each), each


def test_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REELSCALE_FOLLOWED", raising=False)
    log = logging.getLogger("reelscale")
    Run(tmp_path / "run", writes=True).log_to_file()
    try:
        log.warning("damaged: %s; %s", EVIL, OSError(f"what {EVIL}".replace("\n", "")))
        log.warning(f"two\nlines {EVIL}".replace("\rc\nd", "\r"))
        try:
            raise ValueError(EVIL.replace("\n", ""))
        except ValueError:
            log.exception("%s", Path(EVIL))
    finally:
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
        log.propagate = True
    for text in (capsys.readouterr().out, (tmp_path / "run" / "train.log").read_text()):
        assert harmless(text) and "two\nlines" in text and text.count(r"\x1b]0;evil\x07") == 5, text


@pytest.mark.cluster
def test_on_a_terminal(corpus: Path, tmp_path: Path) -> None:
    """A progress bar may move the cursor; names may not."""
    here, terminal = pty.openpty()
    command = [sys.executable, "-m", "cluster.cli", "shard", str(corpus), f"store {EVIL}", *SMALL, *ALONE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        pieces: list[bytes] = []

        def listen() -> None:
            try:
                while piece := os.read(here, 4096):
                    pieces.append(piece)
            except OSError:  # the terminal is closed
                return

        listener = threading.Thread(target=listen)
        listener.start()
        assert process.wait() == 0, b"".join(pieces)
        listener.join()
    os.close(here)
    text = b"".join(pieces).decode()
    assert "\x1b]0;evil" not in text and "\x1b[31mb" not in text and "\u202e" not in text and "\x9b" not in text
    assert r"\x1b]0;evil\x07" in text and "\x1b[" in text  # the bar's own


def test_an_error_of_ours_is_shown_so_too(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs.verification.open_store", lambda url: int(EVIL))
    told = say("shards", "verify", "store")
    assert told.returncode == 1 and "Traceback" in told.stderr and harmless(told.stderr)


def test_json_has_no_control_either(say: Say, corpus: Path, tmp_path: Path) -> None:
    succeeded(say("shard", corpus, "s\x7f", *SMALL, *ALONE))
    told = say("shards", "inspect", "s\x7f", "--json").stdout
    assert harmless(told) and "\x7f" not in told and json.loads(told)["store"] == str(tmp_path / "s\x7f")
