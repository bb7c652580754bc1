"""Reads a source tree's imports without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`module` imports `target` (the longest dotted name that may be a module); `typing_only` under TYPE_CHECKING."""

    module: str
    target: str
    line: int
    typing_only: bool


@dataclass
class Tree:
    """The modules under some source roots, and what they import."""

    modules: dict[str, Path] = field(default_factory=dict)
    imports: list[Import] = field(default_factory=list)

    @classmethod
    def read(cls, *folders: tuple[Path, str]) -> Tree:
        """All modules in (import root, folder inside it) pairs."""
        tree = cls()
        for root, folder in folders:
            for path in sorted((root / folder).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                tree.modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        for module, path in tree.modules.items():
            tree.imports += tree._imports_of(module, path)
        return tree

    def _imports_of(self, module: str, path: Path) -> Iterator[Import]:
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node, typing_only in _walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), False):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(node, package)
                names = [f"{base}.{alias.name}" for alias in node.names]
                targets = [name if name in self.modules else base for name in names]
            else:
                continue
            for target in dict.fromkeys(targets):
                yield Import(module, target, node.lineno, typing_only)

    def circles(self) -> list[list[str]]:
        """Groups of our modules that import each other when they run (strongly connected, more than one module)."""
        edges: dict[str, set[str]] = {module: set() for module in self.modules}
        for item in self.imports:
            if item.target in edges and not item.typing_only and item.target != item.module:
                edges[item.module].add(item.target)
        return circles(edges)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of at least two nodes."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for node in edges.get(stack.pop(), set()) - seen:
                seen.add(node)
                stack.append(node)
        reach[start] = seen
    groups = {frozenset({a, *(b for b in reach[a] if a in reach.get(b, set()))}) for a in edges if a in reach[a]}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _names_type_checking(child.test):
            for statement in child.body:
                yield from _statement(statement, True)
            for statement in child.orelse:
                yield from _statement(statement, typing_only)
        else:
            yield from _statement(child, typing_only)


def _statement(node: ast.AST, typing_only: bool) -> Iterator[tuple[ast.stmt, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, typing_only
    else:
        yield from _walk(node, typing_only)


def _names_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)
