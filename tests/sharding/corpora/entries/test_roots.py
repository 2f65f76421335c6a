"""Where listed files may lie, and names shown without secrets."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.corpora.entries.roots import Roots, sanitised
from sharding.storage.store import open_store
from tests.support.corpora import labels_by_uri, read, write


def test_a_list_and_its_videos_in_a_store(
    s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3[0].items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3[1]}/lists"
    store = open_store(url)
    for path in ("videos/a.mp4", "videos/b", "more/c.mp4", "elsewhere/d.mp4"):
        store.put(path, bytes(2000))
    names = ["a.mp4", f"{url}/videos/b", f"{url}/more/c.mp4", f"{url}/elsewhere/d.mp4", "../elsewhere/d.mp4", "e.mp4"]
    names += [f"{url}/videos/../elsewhere/d.mp4", f"{url}/videosmore.mp4", f"{url}/videos/a.mp4", "/videos/a.mp4"]
    text = "uri,label\n" + "".join(f"{name},x\n" for name in names)
    store.put("list.csv.gz", gzip.compress(text.encode()))
    places = {"media": f"{url}/videos/", "roots": (f"{url}/more",)}
    manifest = read(f"{url}/list.csv.gz", **places)
    assert set(labels_by_uri(manifest)) == {"a.mp4", "b", f"{url}/more/c.mp4"} and manifest.root == f"{url}/videos"
    assert manifest.left_out == {"outside_roots": 5, "missing": 1, "duplicate": 1}
    local = read(write(tmp_path / "list.csv", text), **places)
    assert list(local.videos()) == list(manifest.videos())
    near = read(f"{url}/list.csv.gz")
    assert set(labels_by_uri(near)) == {"videos/a.mp4", "videos/b", "more/c.mp4", "elsewhere/d.mp4"}
    with pytest.raises(UserError, match="no video in the corpus"):
        read(f"{url}/nothing.csv")


def test_urls_without_their_secrets() -> None:
    assert sanitised("s3://key:secret@bucket/a@b.mp4?X-Amz-Signature=1#f") == "s3://b.mp4?…"  # rather too little
    assert sanitised("s3://bucket/a@b.mp4") == "s3://bucket/a@b.mp4"
    assert sanitised("http://host:8080/a b.mp4?token=x y") == "http://host:8080/a b.mp4?…"
    assert "secret" not in sanitised("see https://u:se/secret@host/x") and sanitised("a/b?c.mp4") == "a/b?c.mp4"
    assert sanitised(os.fsdecode(b"\xff.mp4")) == "\\udcff.mp4" and len(sanitised("x" * 9999)) == 300


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["..", ".", "a", "b", "", "media"]), max_size=8), st.sampled_from(["", "/", "/top/media/"])
)
def test_no_name_leaves_its_root(parts: list[str], before: str) -> None:
    name = before + "/".join(parts)
    place = Roots("/top/media").locate(name)
    if place is not None:
        real = os.path.normpath(Path("/top/media") / place[1])
        assert real.startswith("/top/media/") and place[1] == os.path.relpath(real, "/top/media")
        assert real == os.path.normpath(Path("/top/media") / name)
    remote = Roots("s3://bucket/media").locate(name)
    assert remote is None or (".." not in remote[1].split("/") and not name.startswith("/"))
