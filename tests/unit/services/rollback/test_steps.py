"""Steps that remove a part: another process may end them, and what somebody else put there stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castore.engines.base import Contents
from castore.engines.file import File
from castore.errors import CastoreError, UsageError
from castore.services.rollback.journal import PartJournal, TreeMove
from castore.services.rollback.steps import (
    AddedDumpStep,
    AddedTreeStep,
    RecoveredTreeStep,
    TreeStep,
    planned_move,
)

NOTHING = Contents(lambda: (), lambda: ())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    return tree


def removal(tree: Path, move: TreeMove | None = None) -> AddedTreeStep:
    """Return the step that removes a tree, as a process that continues it makes it."""
    move = move or planned_move(str(tree))
    return AddedTreeStep(PartJournal("t", path=os.fsencode(tree), move=move), move, str(tree.parent / "journals"))


def old_of(step: AddedTreeStep) -> Path:
    assert step.journal.move is not None
    return Path(step.journal.move.old)


def replace(path: Path) -> None:
    """Give a path to another directory."""
    path.rename(f"{path}.kept")
    path.mkdir()
    (path / "of another").touch()


def test_a_tree_is_moved_aside_and_then_deleted(tree: Path) -> None:
    step = removal(tree)
    assert step.swap() == []
    assert not tree.exists()
    assert (old_of(step) / "file").read_text() == "content"
    step.cleanup()
    assert list(tree.parent.iterdir()) == []
    step.cleanup()


def test_a_tree_that_was_moved_aside_is_moved_back_by_another_process(tree: Path) -> None:
    step = removal(tree)
    step.swap()
    again = removal(tree, step.journal.move)
    again.revert()
    assert (tree / "file").read_text() == "content"
    again.revert()
    assert [path.name for path in tree.parent.iterdir()] == ["tree"]


def test_a_tree_that_was_replaced_before_it_was_moved_stays(tree: Path) -> None:
    step = removal(tree)
    replace(tree)
    with pytest.raises(CastoreError, match="was replaced by another file or directory meanwhile, and is left as it is"):
        step.swap()
    assert (tree / "of another").exists()
    assert not old_of(step).exists()


def test_a_tree_that_cannot_be_moved_is_named(tree: Path) -> None:
    step = removal(tree)
    tree.rename(f"{tree}.kept")
    with pytest.raises(CastoreError, match=f"{tree} did not exist in the target .* cannot be moved aside: No such file"):
        step.swap()


def test_what_replaced_a_tree_that_was_moved_aside_is_neither_restored_nor_deleted(tree: Path) -> None:
    step = removal(tree)
    step.swap()
    replace(old_of(step))
    with pytest.raises(CastoreError, match=f"{tree} cannot be restored: .* was replaced by another file"):
        step.revert()
    with pytest.raises(CastoreError, match="was replaced by another file or directory: look at it, and remove it"):
        step.cleanup()
    assert (old_of(step) / "of another").exists()
    assert not tree.exists()


def test_a_tree_whose_name_was_taken_meanwhile_stays_aside_and_is_named(tree: Path) -> None:
    step = removal(tree)
    step.swap()
    tree.mkdir()
    (tree / "of another").touch()
    with pytest.raises(CastoreError, match=f"{tree} cannot be restored .*: its previous state is in {old_of(step)}"):
        step.revert()
    assert (old_of(step) / "file").exists()
    assert (tree / "of another").exists()


def test_a_tree_that_could_not_be_examined_is_moved_whatever_it_is(tree: Path) -> None:
    move = planned_move(str(tree.parent / "missing"))
    assert move.inode is None
    step = removal(tree, TreeMove(f"{tree}.old"))
    step.swap()
    step.revert()
    assert (tree / "file").exists()


def made(tree: Path, *, swap_begun: bool = True, existed: bool = False) -> RecoveredTreeStep:
    journal = PartJournal("t", path=os.fsencode(tree), swap_begun=swap_begun, existed=existed)
    return RecoveredTreeStep(journal, str(tree.parent / "journals"))


def test_reverting_removes_a_tree_that_the_rollback_created_only_if_it_is_empty(tree: Path) -> None:
    made(tree).revert()
    assert (tree / "file").exists()
    (tree / "file").unlink()
    for step in (made(tree, existed=True), made(tree, swap_begun=False)):
        step.revert()
        assert tree.exists()
    made(tree).revert()
    assert not tree.exists()


def test_a_tree_is_not_created_without_the_directory_above(tmp_path: Path) -> None:
    path = tmp_path / "above" / "tree"
    step = TreeStep(PartJournal("t", path=os.fsencode(path)), pytest.fail, pytest.fail)
    with pytest.raises(UsageError, match=f"cannot make the tree {path}: the directory {path.parent} does not exist"):
        step.swap()
    step.revert()
    step.cleanup()


@pytest.mark.parametrize("may_delete", [True, False])
def test_a_file_of_which_no_generation_has_all_is_kept_aside_and_named(tmp_path: Path, may_delete: bool) -> None:
    live = tmp_path / "live"
    live.write_text("content")
    engine = File(path=str(live))
    state = engine.prepare()
    step = AddedDumpStep(engine, state, PartJournal("f", engine="file", state=state), NOTHING, lambda: may_delete)
    assert step.stage() == []
    step.swap()
    assert not live.exists()
    step.cleanup()
    if may_delete:
        assert list(tmp_path.iterdir()) == []
    else:
        assert Path(state.old).read_text() == "content"
        ((path, reason),) = step.problems
        assert (path, reason) == (b".", f"the pre-rollback snapshot could not read all of it: it was moved to {state.old}")
