"""Where a name lives longer than a glance in Python code: classes, functions, parameters, attributes, variables."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

GLANCE = 3  # lines that a variable may live for under any name
Scope = (
    ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
)  # fmt: skip


def long_lived(tree: ast.Module, names: Collection[str]) -> list[tuple[int, str]]:
    """(line, name) of what is called one of `names`, underscores before it left out, and lives longer than a glance.

    Classes, functions, their parameters and attributes live long by nature; the parameter of a lambda and a variable
    live from the first to the last line of their scope that names them, scopes within it included.
    """
    return sorted(set(_defined(tree, names)) | set(_variables(tree, names)))


def _defined(tree: ast.Module, names: Collection[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if _plain(node.name) in names:
                yield node.lineno, node.name
            if isinstance(node, ast.ClassDef):
                yield from ((a.lineno, a.id) for a in _class_attributes(node) if _plain(a.id) in names)
            else:
                yield from ((a.lineno, a.arg) for a in _parameters(node) if _plain(a.arg) in names)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _plain(node.attr) in names:
            yield node.lineno, node.attr


def _variables(scope: ast.AST, names: Collection[str]) -> Iterator[tuple[int, str]]:
    """Of a scope and all scopes in it."""
    bound = {name for name, _ in _bound(scope) if _plain(name) in names}
    for name in bound:
        lines = [line for used, line in _used(scope) if used == name]
        if max(lines) - min(lines) >= GLANCE and not isinstance(scope, ast.ClassDef):
            yield min(lines), name
    for inner in _scopes_in(scope):
        yield from _variables(inner, names)


def _bound(scope: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of each binding of a variable in a scope, but those of scopes within it."""
    if isinstance(scope, ast.Lambda):
        yield from ((a.arg, a.lineno) for a in _parameters(scope))
    for node in _walk_own(scope):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name, node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name, node.lineno) for alias in node.names)


def _used(scope: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of each mention of a variable in a scope and in the scopes within it that bind none of that name."""
    yield from _bound(scope)
    yield from ((node.id, node.lineno) for node in _walk_own(scope) if isinstance(node, ast.Name))
    for inner in _scopes_in(scope):
        own = {name for name, _ in _bound(inner)}
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            own |= {a.arg for a in _parameters(inner)}
        yield from ((name, line) for name, line in _used(inner) if name not in own)


def _walk_own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the scopes in it; a comprehension's are its own scope's, `:=` included."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, Scope):
            yield child
            yield from _walk_own(child)


def _scopes_in(scope: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, Scope):
            yield child
        else:
            yield from _scopes_in(child)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.arg]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument for argument in every if argument is not None]


def _class_attributes(node: ast.ClassDef) -> list[ast.Name]:
    targets: list[ast.expr] = []
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
        elif isinstance(statement, ast.Assign):
            targets += statement.targets
    return [target for target in targets if isinstance(target, ast.Name)]


def _plain(name: str) -> str:
    return name.lstrip("_").lower()
