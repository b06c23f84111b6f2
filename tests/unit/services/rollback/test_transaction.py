"""A rollback whose journal or clean-up fails: it is reverted, or what is left is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from castore.errors import CastoreError, NotFoundError, NotIntactError, ProgramError, StorageError
from castore.model.generation import Generation, StoredRef
from castore.model.refs import RefKind
from castore.services.config import Service
from castore.services.rollback.journal import Journal, PartJournal, read_journal
from castore.services.rollback.recover import recover
from castore.services.rollback.request import RollbackContext
from castore.services.rollback.steps import AddedTreeStep, RollbackStep, planned_move
from castore.services.rollback.transaction import Transaction
from tests.support.stores import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

TARGET = Generation("web", 1, 1000, "r1", "", (), StoredRef(RefKind.CHUNK, bytes(32), 1), bytes(16))


@pytest.fixture
def store(tmp_path):
    with Sandbox(tmp_path / "sandbox").open() as store:
        yield store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "live" / "tree"
    tree.mkdir(parents=True)
    (tree / "file").write_text("content")
    return tree


class Untaken:
    """A pre-rollback generation that is not taken."""

    generation = None

    def take(self, states, created):
        pass


class Work:
    """A rollback that removes a tree."""

    def __init__(self, store, tree: Path, steps=(), *, phase="begun", **programs) -> None:
        self.said: list[str] = []
        move = planned_move(str(tree))
        removal = AddedTreeStep(PartJournal("t", path=os.fsencode(tree), move=move), move, str(tree.parent / "journals"))
        self.steps: list[RollbackStep] = [removal, *steps]
        service = Service(**programs)
        parts = [step.journal for step in self.steps]
        journal = Journal("web", 1, None, parts, service.stop, service.start, revision="r1", before="r2")
        context = RollbackContext(service=service, say=self.said.append)
        self.transaction = Transaction(store, journal, self.steps, Untaken(), context)

    def run(self):
        self.transaction.run(TARGET, [])


class Failing(RollbackStep):
    """A step of which one method fails."""

    def __init__(self, method: str) -> None:
        super().__init__(PartJournal("f", path=b"/unused"))
        setattr(self, method, self.fail)

    def fail(self):
        raise CastoreError("the disk failed")


def fail_in(store, monkeypatch, phase: str) -> None:
    """Let the journal not be written in a phase, once."""
    write, failed = type(store.state).write_rollback_journal, []

    def failing(state, service: str, data: bytes) -> None:
        if phase.encode() in data and not failed:
            failed.append(phase)
            raise StorageError("no space is left")
        write(state, service, data)

    monkeypatch.setattr(type(store.state), "write_rollback_journal", failing)


def test_a_rollback_removes_what_the_target_lacks_and_records_the_revision(store, tree) -> None:
    work = Work(store, tree)
    work.run()
    assert list(tree.parent.iterdir()) == []
    assert (work.transaction.changed, work.transaction.problems) == (("t",), [])
    assert store.state.live_revision("web") == "r1"
    assert read_journal(store, "web") is None


@pytest.mark.parametrize(
    ("phase", "live"),
    [("begun", None), ("stopped", "the previous state"), ("started", "the previous state"), ("done", "the previous state")],
)
def test_a_rollback_whose_journal_cannot_be_written_is_reverted(store, tree, monkeypatch, tmp_path, phase, live) -> None:
    """In the last phase too, where the service runs on the target's state already."""
    work = Work(store, tree, start=("touch", str(tmp_path / "ran")))
    fail_in(store, monkeypatch, phase)
    with pytest.raises(StorageError, match="no space is left" + (f"; {live} .* is restored" if live else "")):
        work.run()
    assert (tree / "file").read_text() == "content"
    assert [path.name for path in tree.parent.iterdir()] == ["tree"]
    assert read_journal(store, "web") is None
    assert store.state.live_revision("web") is None
    assert (tmp_path / "ran").exists() == bool(live), "what was stopped is started again"


def test_a_part_that_cannot_be_swapped_reverts_those_before_it(store, tree) -> None:
    work = Work(store, tree, [Failing("swap")])
    with pytest.raises(CastoreError, match=r"the disk failed; the previous state of 'web' \(revision r2\) is restored"):
        work.run()
    assert (tree / "file").exists()
    assert read_journal(store, "web") is None


def test_a_part_that_cannot_be_reverted_is_named_and_keeps_the_journal(store, tree, tmp_path) -> None:
    started = tmp_path / "started"
    steps = [Failing("revert")]
    work = Work(store, tree, steps, start=("sh", "-c", f"echo >>{started}; exit 1"))
    with pytest.raises(NotIntactError) as caught:
        work.run()
    message = str(caught.value)
    assert "the previous state of 'f' could not be restored: the disk failed; so 'web' is not started" in message
    assert "castore recover web" in message
    assert started.read_text() == "\n", "not on an inconsistent state"
    assert (tree / "file").exists()
    journal = read_journal(store, "web")
    assert journal is not None
    assert [(part.name, part.reverted) for part in journal.parts] == [("t", True), ("f", False)]


def test_what_is_left_of_a_rollback_that_changed_nothing_blocks_no_command(store, tree) -> None:
    work = Work(store, tree, [Failing("revert")])
    work.steps[0].stage = Failing("stage").fail
    with pytest.raises(CastoreError, match="the disk failed; nothing was replaced"):
        work.run()
    assert read_journal(store, "web") is None
    assert any("could not be restored: the disk failed" in line for line in work.said)
    assert any("is forgotten" in line for line in work.said)


def test_what_cannot_be_removed_of_a_tree_is_named_and_the_rollback_is_done(store, tree) -> None:
    work = Work(store, tree, [Failing("cleanup")])
    work.run()
    ((part, _, reason),) = work.transaction.problems
    assert (part, reason) == ("f", "the state that was replaced cannot be removed: the disk failed")
    assert store.state.live_revision("web") == "r1"
    assert read_journal(store, "web") is None


def test_a_service_that_does_not_start_keeps_the_previous_state(store, tree, tmp_path) -> None:
    ok = tmp_path / "ok"
    work = Work(store, tree, start=("sh", "-c", f"test -e {ok} || {{ touch {ok}; exit 3; }}"))
    with pytest.raises(ProgramError, match="is restored"):
        work.run()
    assert (tree / "file").exists()
    with pytest.raises(NotFoundError, match="no rollback of 'web' was interrupted"):
        recover(store, "web")
