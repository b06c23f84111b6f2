"""The command line imports less of other packages than a library does, and nothing differs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from castore.cli.light_imports import cleandoc


def imported(script: str) -> set[str]:
    """Return the modules that are imported when a script ends."""
    script += "\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", "import sys\n" + script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "text",
    ["", "One line.", "  One line.  ", "First.\n\n    Second\n      third\n    \n", "\n\n  a\n\tb\n", "a\n  b\n c\n", "\n   \n", "a\n\n\n"],
)
def test_an_indented_text_is_cleaned_as_the_standard_library_does(text):
    assert cleandoc(text) == inspect.cleandoc(text)


def test_a_command_imports_neither_the_parser_of_python_nor_typing_extensions(home):
    script = (
        "from castore.process.own_process import declare_own_process\n"
        "from castore.cli.light_imports import defer_inspect, import_msgspec\n"
        "defer_inspect(); import_msgspec()\n"
        "import click, msgspec, castore.cli.commands.snapshot"
    )
    found = imported(script)
    assert {"click", "msgspec"} <= found
    assert not found & {"ast", "dis", "tokenize", "typing_extensions"}


def test_the_deferred_module_is_the_real_one_when_more_of_it_is_used():
    script = (
        "from castore.cli.light_imports import defer_inspect\n"
        "defer_inspect()\n"
        "import inspect\n"
        "assert str(inspect.signature(lambda a, b=1: 0)) == '(a, b=1)'\n"
        "from inspect import Parameter\n"
        "assert inspect.Parameter is Parameter\n"
        "assert inspect.getsource(inspect.cleandoc)\n"
        "assert sys.modules['inspect'].isfunction(imported := (lambda: 0)), imported\n"
    )
    assert "dis" in imported(script)


def test_types_of_records_are_evaluated_without_typing_extensions():
    script = (
        "from castore.cli.light_imports import import_msgspec\n"
        "import_msgspec()\n"
        "import msgspec, castore.model.generation as g\n"
        "origin = g.Origin(path=b'/p')\n"
        "assert msgspec.msgpack.decode(msgspec.msgpack.encode(origin), type=g.Origin) == origin\n"
        "msgspec.msgpack.Decoder(g.Generation)\n"
    )
    assert "typing_extensions" not in imported(script)


def test_castore_as_a_library_imports_as_usual():
    found = imported("import castore; castore.open; import typing_extensions, inspect; assert inspect.signature")
    assert "typing_extensions" in found


def test_the_version_needs_no_command_line():
    script = (
        "import castore.__main__ as program, os\n"
        "sys.argv = ['castore', '--version']\n"
        "os._exit = lambda code: None\n"
        "program._show_version()\n"
    )
    assert "click" not in imported(script)


def test_the_version_is_what_the_command_line_prints():
    quick = subprocess.run([sys.executable, "-m", "castore", "--version"], capture_output=True, text=True, check=True).stdout
    slow = subprocess.run([sys.executable, "-m", "castore", "--quiet", "--version"], capture_output=True, text=True, check=True).stdout
    assert quick == slow


@pytest.mark.parametrize("command", ["log", "snapshot", "rollback", "restore", "show"])
def test_every_command_imports_msgspec_without_typing_extensions(command, home, tmp_path):
    """Whichever module of castore is the first to import it."""
    script = (
        f"sys.argv = ['castore', {command!r}, 'service', '--store', '/nowhere']\n"
        "from castore.cli.light_imports import defer_inspect\n"
        "defer_inspect()\n"
        "from castore.cli.main import run_command\n"
        "run_command()\n"
    )
    found = imported(script)
    assert "msgspec" in found
    assert not found & {"typing_extensions", "dataclasses", "dis"}
