"""The source of the repository as the house's tests look at it: its files, what they import, and their rooms."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "pretrain", "sharding")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    """A path as it is written from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """The dotted name by which a file is imported."""
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports: at its top, inside functions, for type checkers, and by a string.

    `from a import b` gives a and a.b: b may be a module or a name in a.
    """
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names


def room(module: str) -> str:
    """The folder that a module lies in; a file directly in a package is a room of its own, as is a package's head."""
    return module if module.count(".") < 2 else module.rpartition(".")[0]


def module_imports() -> dict[str, set[str]]:
    """The modules that each module of the packages imports. A folder's `__init__` counts where it alone is meant."""
    names = {module_name(path): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        hits = imported(path) & names.keys()
        graph[name] = {hit for hit in hits if hit != name and not any(other.startswith(hit + ".") for other in hits)}
    return graph


def room_imports(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The rooms that each room imports something from."""
    folders = {module_name(path) for path in MODULES if path.name == "__init__.py"}

    def room_of(module: str) -> str:
        return module if module in folders else room(module)

    graph: dict[str, set[str]] = {room_of(name): set() for name in modules}
    for name, targets in modules.items():
        graph[room_of(name)] |= {room_of(target) for target in targets} - {room_of(name)}
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """A way through the graph that ends where it begins; [] if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []
