"""Listed names find files whose names are in another Unicode form, or have blanks around them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sharding.storage.store import open_store
from tests.support.corpora import COMPOSED, DECOMPOSED, labels_by_uri, make, of_lines

PATHS = [
    (COMPOSED, DECOMPOSED),
    (DECOMPOSED, COMPOSED),
    (f"{COMPOSED}/{COMPOSED}", f"{DECOMPOSED}/{COMPOSED}"),
    (f"{DECOMPOSED}/{COMPOSED}/x", f"{COMPOSED}/{DECOMPOSED}/x"),
    (f"é{DECOMPOSED}", f"{unicodedata.normalize('NFD', 'é')}{COMPOSED}"),
]


@pytest.mark.parametrize(("listed", "stored"), PATHS)
def test_a_list_finds_files_in_another_unicode_form(tmp_path: Path, listed: str, stored: str) -> None:
    make(tmp_path, f"{stored}.mp4")
    names = [f"{listed}.mp4", f" {listed}.mp4  ", f"{tmp_path}/{listed}.mp4", f"file://{tmp_path}/{listed}.mp4"]
    for name in names:
        assert labels_by_uri(of_lines(tmp_path, "uri,label", f"{name},x")) == {f"{stored}.mp4": ["x"]}
    make(tmp_path, f"{listed}.mp4")
    assert labels_by_uri(of_lines(tmp_path, "uri,label", f"{listed}.mp4,x")) == {f"{listed}.mp4": ["x"]}
    url = f"memory://{tmp_path.name}"
    open_store(url).put(f"{stored}.mp4", bytes(2000))
    for name in (f"{listed}.mp4", f" {listed}.mp4", f"{url}/{listed}.mp4 "):
        assert labels_by_uri(of_lines(tmp_path, "uri,label", f"{name},x", media=url)) == {f"{stored}.mp4": ["x"]}


def test_one_file_in_two_forms_and_below_a_root_in_another(tmp_path: Path) -> None:
    make(tmp_path / DECOMPOSED, f"{DECOMPOSED}.mp4")
    lines = ["uri,label,split", f"{tmp_path}/{COMPOSED}/{COMPOSED}.mp4,x,train", f"{DECOMPOSED}.mp4,y,train"]
    manifest = of_lines(tmp_path, *lines, f"{COMPOSED}.mp4,x,val", media=str(tmp_path / DECOMPOSED))
    assert labels_by_uri(manifest) == {f"{DECOMPOSED}.mp4": ["x", "y"]}
    assert manifest.left_out == {"duplicate": 1, "leak": 1}


def test_blanks_around_paths_are_none_unless_the_file_has_them(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", " b.mp4", "c.mp4", "c.mp4 ", "d e.mp4", "absolute.mp4")
    lines = [
        " a.mp4 ",
        " b.mp4",
        "c.mp4 ",
        "\u3000d e.mp4\t",
        f"  {tmp_path}/absolute.mp4 ",
        " ../out.mp4",
        " gone.mp4 ",
    ]
    manifest = of_lines(tmp_path, "uri,label", *[f"{name},x" for name in lines])
    assert set(labels_by_uri(manifest)) == {"a.mp4", " b.mp4", "c.mp4 ", "d e.mp4", "absolute.mp4"}
    assert manifest.left_out == {"missing": 1, "outside_roots": 1}
    json = ['{"uri": " a.mp4 ", "label": "x"}', '{"uri": "c.mp4 ", "label": "x"}', '{"uri": "c.mp4", "label": "x"}']
    assert set(labels_by_uri(of_lines(tmp_path, *json, name="l.jsonl"))) == {"a.mp4", "c.mp4 ", "c.mp4"}


def test_blanks_around_addresses_and_keys(
    tmp_path: Path, s3: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3[0].items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3[1]}/blanks"
    for key in ("a.mp4", " b.mp4", "c.mp4", "d.mp4", "d.mp4 ", f"{DECOMPOSED}.mp4"):
        open_store(url).put(key, bytes(2000))
    lines = [" a.mp4", " b.mp4", f"  {url}/c.mp4 ", "d.mp4 ", " gone.mp4", f" s3://{s3[1]}/elsewhere/x.mp4"]
    lines.append(f"{COMPOSED}.mp4")
    manifest = of_lines(tmp_path, "uri,label", *[f"{name},x" for name in lines], media=url)
    assert set(labels_by_uri(manifest)) == {"a.mp4", " b.mp4", "c.mp4", "d.mp4 ", f"{DECOMPOSED}.mp4"}
    assert manifest.left_out == {"missing": 1, "outside_roots": 1}
