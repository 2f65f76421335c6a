"""What lies where: the top of the repository, sizes, and what rooms say of themselves."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter

import pytest

from tests.support.source_code import MODULES, PACKAGES, ROOT, TEST_FILES, module_name, parsed, relative, room

TOP = {
    "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "LICENSE",
    "constraints.txt", "configs", "sharding", "pretrain", "cluster", "tests",
}  # fmt: skip
FILE_LINES, FUNCTION_LINES, FOLDER_FILES = 350, 60, 14
ALL_FILES = [*MODULES, *TEST_FILES]


def rooms_of(package: str) -> set[str]:
    """The dotted names of a package's rooms, itself left out."""
    return {room(module_name(path)) for path in MODULES if path.name != "__init__.py"} & {
        name
        for path in MODULES
        for name in (module_name(path), module_name(path.parent))
        if name.startswith(f"{package}.")
    }


def test_top_of_the_repository() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        names = {line.partition("/")[0].strip('"') for line in listed.stdout.splitlines()}
    else:
        made = {"build", "dist", "demo", "runs", "store", "reelscale.egg-info", "__pycache__"}
        names = {path.name for path in ROOT.iterdir()} - made
    assert {name for name in names if not name.startswith(".")} == TOP


def test_every_file_says_its_job_first() -> None:
    assert [relative(path) for path in ALL_FILES if not ast.get_docstring(parsed(path))] == []


def test_files_are_short() -> None:
    lines = {relative(path): len(path.read_text("utf-8").splitlines()) for path in ALL_FILES}
    assert {path: count for path, count in lines.items() if count > FILE_LINES} == {}


def test_functions_are_short() -> None:
    lines = {
        f"{relative(path)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in ALL_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lines.items() if count > FUNCTION_LINES} == {}


def test_folders_are_small() -> None:
    files = Counter(relative(path.parent) for path in ALL_FILES)
    assert {folder: count for folder, count in files.items() if count > FOLDER_FILES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_readme_names_its_rooms(package: str) -> None:
    rooms = rooms_of(package)
    assert len(rooms) > 3
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    assert {name for name in rooms if not re.search(rf"\b{name.rpartition('.')[2]}\b", text)} == set()


def test_a_rooms_head_says_what_the_room_is_for() -> None:
    folders = {path.parent for path in MODULES}
    heads = {folder: folder / "__init__.py" for folder in folders}
    assert [relative(folder) for folder, head in heads.items() if not head.exists()] == []
    said = {relative(folder): ast.get_docstring(parsed(head)) or "" for folder, head in heads.items()}
    assert [folder for folder, text in said.items() if len(text.split()) < 4] == []


def test_what_needs_a_gpu_is_marked() -> None:
    """`pytest -m gpu` is all of it: a file that skips tests for want of a GPU marks them, by `needs_gpu` or itself."""
    texts = {relative(path): path.read_text(encoding="utf-8") for path in TEST_FILES if path.name.startswith("test_")}
    looking = {name for name, text in texts.items() if re.search(r"skip\w*\((\s*not )?\s*torch\.cuda", text)}
    assert {name for name in looking if "mark.gpu" not in texts[name]} == set()
    assert sum("@needs_gpu(" in text for text in texts.values()) > 2
