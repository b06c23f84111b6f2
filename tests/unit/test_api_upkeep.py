"""The Python API for comparing, searching, repairing and for keys, as its users call it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import castore
from castore import testing
from castore.errors import DamageError, NotFoundError, UsageError

COMMANDS = Path(castore.__file__).parent / "cli/commands"


@pytest.fixture
def store():
    with testing.temporary_store() as made:
        yield made


@pytest.fixture
def wiki(store: castore.Store, tmp_path: Path) -> castore.Service:
    service, tree = store.service("wiki"), tmp_path / "wiki"
    tree.mkdir()
    for text in ("one", "two, longer"):
        (tree / "a.conf").write_text(text)
        service.snapshot({"pages": castore.Tree(str(tree))})
        (tree / "b.conf").write_text("new")
    return service


def test_generations_and_selections_are_compared(store: castore.Store, wiki: castore.Service) -> None:
    new, old = wiki.generations()
    found = {(one.part, one.path, one.change) for one in old.diff(new)}
    assert {("pages", b"a.conf", "content"), ("pages", b"b.conf", "added")} <= found
    (only,) = store.select("wiki@1:pages/a.conf").diff(store.select("wiki@2"))
    assert only.change == "content"
    with pytest.raises(NotFoundError):
        list(store.select("wiki@1:pages/none").diff(store.select("wiki@2")))


def test_paths_are_searched_in_all_generations(store: castore.Store, wiki: castore.Service) -> None:
    found = {hit.path: [span.generations[0].number for span in hit.spans] for hit in wiki.find("*.conf")}
    assert found == {b"a.conf": [1, 2], b"b.conf": [2]}
    (history,) = wiki.history("pages", "a.conf")
    assert [span.change for span in history.spans] == ["added", "content"]
    with pytest.raises(NotFoundError):
        list(store.service("none").find("*"))


def test_a_directory_that_cannot_be_read_is_passed_to_the_caller_or_raises(store: castore.Store, wiki: castore.Service) -> None:
    for pack in (Path(store.location) / "packs").rglob("*"):
        if pack.is_file():
            pack.write_bytes(bytes(pack.stat().st_size))
    damage: list[tuple[str, bytes, str]] = []
    assert not list(wiki.find("*.conf", on_damage=lambda *found: damage.append(found)))
    assert damage[0][0] == "pages"
    with pytest.raises(DamageError):
        list(wiki.find("*.conf"))


def test_plans_change_nothing(store: castore.Store, wiki: castore.Service) -> None:
    assert store.plan_compact().reclaimed >= 0
    assert store.plan_repair().is_empty
    assert [generation.number for generation in wiki.plan_forget([1]).deleted] == [1]
    assert [generation.number for generation in wiki.generations()] == [2, 1]


def test_repair_asks_before_it_changes_anything(store: castore.Store, wiki: castore.Service) -> None:
    pack = next(path for path in (Path(store.location) / "packs").rglob("*") if path.is_file())
    pack.write_bytes(bytes(pack.stat().st_size))
    report = store.repair(confirm=lambda plan: plan.is_empty)
    assert report.result is None
    assert not report.after.sound
    assert store.repair().result is not None
    assert not pack.exists()


def test_the_index_is_rebuilt_and_events_are_listed(store: castore.Store, wiki: castore.Service) -> None:
    assert store.reindex() > 0
    assert [event.kind for event in store.events("wiki", limit=1)] == ["snapshot"]
    assert store.events("none") == []


def test_recipients_are_added_and_removed(store: castore.Store) -> None:
    other = castore.Identity.generate()
    store.keys.add(other.recipient, "offsite")
    assert [(holder.key, holder.label) for holder in store.keys.recipients][1:] == [(other.recipient.text, "offsite")]
    with pytest.raises(UsageError, match="already"):
        store.keys.add(other.recipient.text)
    store.keys.remove(other.recipient.text)
    with pytest.raises(NotFoundError):
        store.keys.remove(other.recipient)
    with pytest.raises(UsageError, match="needs a recipient"):
        store.keys.remove(store.keys.recipients[0].key)
    assert [writer.host for writer in store.keys.writers] == [store.keys.host]
    assert store.keys.may_maintain


def test_commands_use_the_public_interface_of_stores() -> None:
    """The others list hosts and pins, or check castore.toml against the store."""
    known = {"config.py", "forget.py", "log.py"}
    found = {
        path.name
        for path in COMMANDS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"internal", "open_internal"}
    }
    assert found <= known
