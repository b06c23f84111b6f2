"""Assertions and silent handlers are for mistakes of castore only: `python -O` removes assertions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import castore

PACKAGE = Path(castore.__file__).parent

KNOWN = {
    ("cli/commands/help.py", "ctx.parent is not None"): "click gives a subcommand its parent",
    ("engines/mariadb/script.py", "self._tail is not None"): "the tables are read before the records",
    ("process/program.py", "self._process.stdin is not None"): "the program was started with a pipe",
    ("process/program.py", "self._process.stdout is not None"): "the program was started with a pipe",
    ("process/program.py", "self._alarm is not None"): "a program with a limit of time has an alarm",
    ("services/follow.py", "self.generation is not None"): "the selector is that of the generation",
    ("services/restore_in_place.py", "child is not None"): "a tree was selected",
    (
        "store/index/bulk_load.py",
        "(_FIRSTS.size, _COPIES.size, _BASES.size) == (FIRST, COPY, BASE_ROW)",
    ): "sizes of constants",
}
"""Assertions about what castore itself has just made or checked, with the reason why they hold."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def test_no_assertion_is_about_data_from_elsewhere() -> None:
    found = {
        (name, ast.unparse(node.test)) for name, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Assert)
    }
    assert found <= set(KNOWN), "check data of disks and programs with an error of castore.errors"


def test_no_error_of_any_class_is_passed_over() -> None:
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                found += [f"{name}:{node.lineno}" for one in node.args if ast.unparse(one) in {"Exception", "BaseException"}]
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            ):
                passed = all(isinstance(one, (ast.Pass, ast.Continue)) for one in node.body)
                found += [f"{name}:{node.lineno}"] if passed else []
    assert not found, "name the errors that are expected"
