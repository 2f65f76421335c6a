"""The house: who may import whom, what lies at the top, and what a command loads before it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSES = ("cluster", "pretrain", "sharding")
TOP = {
    "pyproject.toml", "README.md", "Makefile", "LICENSE", "constraints.txt",
    "configs", "sharding", "pretrain", "cluster", "tests",
}  # fmt: skip
MODULES = sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def importers(package: str) -> set[str]:
    """Files of the houses, relative to the root, that import a package or something in it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }


def run(program: str) -> str:
    """Standard output of a program that a fresh interpreter must run to its end."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_are_really_read() -> None:
    assert "pretrain/training/trainer.py" in importers("torch")
    assert "cluster/launch/ray_cluster.py" in importers("ray")
    assert len(MODULES) > 30


@pytest.mark.parametrize(
    ("lower", "upper"), [("sharding", "pretrain"), ("sharding", "cluster"), ("pretrain", "cluster")]
)
def test_arrows_go_down(lower: str, upper: str) -> None:
    assert {path for path in importers(upper) if path.startswith(lower + "/")} == set()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("ray", ("cluster/",)),
        ("typer", ("cluster/cli.py", "cluster/commands/")),
        ("deepspeed", ("pretrain/engine/",)),
        ("fsspec", ("sharding/storage/store.py",)),
        ("s3fs", ("sharding/storage/store.py",)),
        ("botocore", ("sharding/storage/store.py",)),
        ("aiobotocore", ("sharding/storage/store.py",)),
        ("torch", ("pretrain/",)),
        ("triton", ("pretrain/models/compute/row_kernels.py",)),
        ("matplotlib", ("pretrain/report",)),
        ("webdataset", ("sharding/",)),
    ],
)
def test_a_package_is_imported_in_one_place(package: str, allowed: tuple[str, ...]) -> None:
    assert {path for path in importers(package) if not path.startswith(allowed)} == set()


def test_parquet_is_read_in_the_calling_thread() -> None:
    assert [str(path) for path in MODULES if "read_table(" in path.read_text("utf-8")] == []


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
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    silent = [
        str(path.relative_to(ROOT)) for path in files if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


def test_help_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "deepspeed", "pyarrow", "av", "matplotlib", "numpy", "fsspec", "s3fs"]
    program = f"""
import contextlib, io, sys
from cluster.cli import main
shown = io.StringIO()
sys.argv = ["reelscale", "--help"]
with contextlib.redirect_stdout(shown):
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
assert "pretrain" in shown.getvalue() and "shard" in shown.getvalue(), shown.getvalue()
print([name for name in {heavy!r} if name in sys.modules])
"""
    assert run(program).strip() == "[]"


def test_all_works_without_ray(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.mp4").write_bytes(b"")
    program = f"""
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.split(".")[0] == "ray" else real(name, path, target)
)
import sharding.make.shard, pretrain.training.trainer, pretrain.evaluation.evaluate, pretrain.report.report, cluster.cli
import cluster.jobs.sharding, cluster.jobs.training, cluster.jobs.evaluation
try:
    import ray
    sys.exit("ray was imported all the same")
except ModuleNotFoundError:
    pass
from cluster.launch.choose import choose_launcher
assert choose_launcher("auto") == choose_launcher("none") == "none"
sys.argv = ["reelscale", "shard", {str(tmp_path / "corpus")!r}, {str(tmp_path / "store")!r}, "launcher=ray"]
sys.stderr = sys.stdout
try:
    cluster.cli.main()
except SystemExit as end:
    print("exit", end.code)
"""
    said = run(program)
    assert said.rstrip().endswith("exit 2") and "Traceback" not in said
    assert "Ray is not installed" in said and "launcher=none" in said and "pip install" in said


def test_what_needs_a_gpu_is_marked() -> None:
    """`pytest -m gpu` is all of it: a file that skips tests for want of a GPU marks them, by `needs_gpu` or itself."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    looking = {name for name, text in texts.items() if re.search(r"skip\w*\((\s*not )?\s*torch\.cuda", text)}
    assert {name for name in looking if "mark.gpu" not in texts[name]} == set()
    assert sum("@needs_gpu(" in text for text in texts.values()) > 2
