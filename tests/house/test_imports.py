"""Who may import whom, and what a command loads before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source_code import MODULES, ROOT, circle, imported, module_imports, relative, room_imports


def importers(package: str) -> set[str]:
    """Files of the packages, relative to the root, that import a package or something in it."""
    return {
        relative(path)
        for path in MODULES
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }


def run(program: str) -> str:
    """Standard output of a program that a fresh interpreter must run to its end."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_are_really_read(tmp_path: Path) -> None:
    assert "pretrain/training/trainer.py" in importers("torch")
    assert "cluster/launch/on_ray/cluster.py" in importers("ray")
    assert len(MODULES) > 30
    hidden = tmp_path / "hidden.py"
    hidden.write_text(
        "if TYPE_CHECKING:\n    from a.b import c\ndef late():\n    import d.e\n    importlib.import_module('f.g')\n"
    )
    assert imported(hidden) == {"a.b", "a.b.c", "d.e", "f.g"}


def test_no_module_imports_itself_on_any_way() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    assert circle(module_imports()) == []


def test_no_room_imports_itself_on_any_way() -> None:
    rooms = room_imports(module_imports())
    assert "sharding.base" in rooms["sharding.storage"]
    assert circle(rooms) == []


def test_a_rooms_head_imports_nothing() -> None:
    """A room is imported by its files; what its `__init__` imported would be loaded with each of them."""
    assert [relative(path) for path in MODULES if path.name == "__init__.py" and imported(path)] == []


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
