"""The reference pages say what the code says, and every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import types
import typing
from pathlib import Path

import click
import msgspec
import pytest

from castore import engines
from castore.cli.main import cli
from castore.cli.topics import topics
from castore.engines.password import Secret
from castore.errors import EXIT_CODES
from castore.services.config import settings
from castore.services.dates import parse_date
from tests.support.documents import DOCS, PAGES, README, ROOT, commands_in_units, name_of
from tests.support.documents import blocks as blocks_of

COMMON_OF_ENGINES = {"timeout", "run-as"}
"""Keys of every engine, which the page describes once."""
TABLES = {
    "Top level": settings.TopTable,
    "Service": settings.ServiceTable,
    "Revision": settings.Revision,
    "Keep": settings.Keep,
    "Part": settings.HooksTable,
    "tree": settings.TreePart,
    "Passwords": Secret,
    **{name: engines.find(name) for name in engines.names() if name != "mysql"},
}


def sections(page: Path) -> dict[str, str]:
    found = re.split(r"^#+ +(.+)\n", page.read_text(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table in a text, without its head."""
    table = re.search(r"^\|.*\n\|[ -|]*\n((?:\|.*\n?)*)", text, re.MULTILINE)
    assert table is not None, text
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[1].splitlines()]


def type_of(annotation: typing.Any) -> str:
    """Return what the page calls a type."""
    if typing.get_origin(annotation) in {types.UnionType, typing.Union}:
        (annotation,) = [one for one in typing.get_args(annotation) if one is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        return "text"
    if typing.get_origin(annotation) is tuple:
        return "list of text"
    plain = {str: "text", int: "number", float: "number", bool: "true or false"}
    return plain.get(annotation, "table")


@pytest.mark.parametrize("section", TABLES)
def test_every_key_of_castore_toml_is_documented_with_type_and_default(section: str) -> None:
    documented = {row[0].strip("`"): row for row in rows(sections(DOCS / "configuration.md")[section])}
    common = COMMON_OF_ENGINES if section in engines.names() else set()
    fields = {one.encode_name: one for one in msgspec.structs.fields(TABLES[section]) if one.encode_name not in common}
    assert list(documented) == sorted(fields, key=list(documented).index)
    for name, one in fields.items():
        _, kind, default, meaning = documented[name]
        assert kind == type_of(one.type), name
        assert meaning, name
        if one.default in {msgspec.NODEFAULT, None, ()}:
            required = one.required or one.default_factory is not msgspec.NODEFAULT
            assert default.startswith("required") == one.required or not required, name
        elif one.default != "":
            expected = {True: "true", False: "false"}.get(one.default) if isinstance(one.default, bool) else None
            expected = expected or (f'`"{one.default}"`' if isinstance(one.default, str) else str(one.default))
            assert default == expected, name


def test_the_keys_that_defaults_takes_are_documented() -> None:
    text = sections(DOCS / "configuration.md")["Defaults"].split("exclude")[0]
    named = set(re.findall(r"`([a-z-]+)`", text)) - {"exclude"}
    assert named | {"exclude"} == {one.encode_name for one in msgspec.structs.fields(settings.DefaultsTable)}


def test_the_page_of_commands_is_current() -> None:
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "tools/cli_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "cli.md").read_text() == module.page(), "run: .venv/bin/python tools/cli_page.py"


def test_every_exit_code_is_documented() -> None:
    documented = {row[0]: row[1] for row in rows((DOCS / "exit-codes.md").read_text())}
    assert documented == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_every_variable_that_castore_reads_is_documented() -> None:
    text = "".join(path.read_text() for path in ROOT.glob("castore/**/*.py"))
    used = set(re.findall(r"[\"'](CASTORE_[A-Z_]+)[\"']", text)) - {"CASTORE_PROGRAM"}
    assert len(used) > 5
    documented = set(re.findall(r"`([A-Z_]+)`", (DOCS / "environment.md").read_text()))
    assert used <= documented


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == "[Unreleased]"
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_dates_in_the_page_of_commands_are_understood() -> None:
    row = next(row for row in rows((DOCS / "cli.md").read_text()) if row[0] == "a date")
    examples = re.findall("`([^`]+)`", row[1])
    assert len(examples) == 3
    assert all(parse_date(one) is not None for one in examples)


def test_the_glossary_is_in_order_and_defines_each_term_once() -> None:
    terms = re.findall(r"\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text())
    assert terms == sorted(set(terms))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of headings, and its own."""
    text = page.read_text()
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(r"`((?:castore|tools|tests|bench)/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_index_and_the_readme_name_every_page() -> None:
    named = set(re.findall(r"\]\((?:[a-z]+/)*([a-z-]+)\.md", (DOCS / "index.md").read_text()))
    assert named == set(topics()) - {"index"}
    assert "castore/docs/index.md" in README.read_text()


def test_tests_that_a_page_names_exist() -> None:
    text = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    files = {path.name for path in ROOT.glob("tests/**/*.py")}
    for page in PAGES:
        for name in re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text()):
            assert name in files or f"def {name}(" in text, name


def options_of(command: click.Command) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}


def check_command(words: list[str], where: str) -> None:
    """Fail unless words after `castore` are a command with options that exist."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0].rstrip(","))
        assert found is not None, f"{where}: there is no command {words[0]}"
        command, words = found, words[1:]
    own = words[: words.index("--")] if "--" in words else words
    for word in own:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0].rstrip(",") in options_of(command), f"{where}: there is no {word}"


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in {"json", "cli"}], ids=name_of)
def test_the_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"^```\w.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`castore ([^`]+)`", text.replace("\n", " ")):
        words = code.replace("\\|", "|").replace("[", " ").replace("]", " ").split()
        if re.fullmatch("[a-z][a-z-]*", words[0]):
            check_command(words, code)


def test_the_commands_in_unit_files_exist() -> None:
    seen = 0
    for page in PAGES:
        for block in blocks_of(page):
            if block.language in {"ini", "scheme", "nix", "dockerfile"}:
                for words in commands_in_units(block.text):
                    check_command(words, block.page)
                    seen += 1
    assert seen > 2
