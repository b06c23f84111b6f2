"""The message of an interrupted command says which state it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from castore.cli.error_report import explain
from castore.cli.main import cli


def interrupt(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a command in this process; return its exit code and messages."""
    (home / "live").mkdir()
    (home / "live/f").write_text("1")

    def run_command(*words: str) -> tuple[int, str]:
        try:
            cli.main([*words, "--store", str(tmp_path / "store")] if words[0] != "init" else [*words], prog_name="castore", standalone_mode=False)
        except BaseException as error:
            return explain(error), capsys.readouterr().err
        return 0, capsys.readouterr().err

    assert run_command("init", str(tmp_path / "store"))[0] == 0
    for text in ("1", "2"):
        (home / "live/f").write_text(text)
        assert run_command("snapshot", "s", "--tree", f"t={home}/live")[0] == 0
    (home / "live/f").write_text("3")
    return run_command


CASES = {
    "snapshot": ("castore.services.part_writer.PartWriter.write", ["snapshot", "s", "--tree", "t=LIVE"], "nothing was committed"),
    "committing": ("castore.store.generation_log.GenerationLog.commit", ["snapshot", "s", "--tree", "t=LIVE"], "'castore log s' shows"),
    "committed": ("castore.services.part_writer.PartWriter.keep_scans", ["snapshot", "s", "--tree", "t=LIVE"], "s@3 is committed"),
    "comparing": ("castore.services.rollback.execute.plan_rollback", ["rollback", "s", "--to", "1"], "nothing was replaced: the state of 's' is as before"),
    "pre-rollback": ("castore.services.part_writer.PartWriter.write", ["rollback", "s", "--to", "1"], "the previous state of 's' is restored"),
    "starting": ("castore.services.rollback.transaction.check_health", ["rollback", "s", "--to", "1"], "the previous state of 's' is restored"),
    "restored": ("castore.services.rollback.execute.take_over", ["rollback", "s", "--to", "1"], "s@1 is restored"),
    "restore": ("castore.services.restore._PartRestorer.restore", ["restore", "s@1", "HOME/out"], "nothing was restored"),
    "drill": ("castore.services.drill._tree", ["drill", "s"], "the live state was not changed"),
    "forget": ("castore.store.generation_log.GenerationLog.forget", ["forget", "s@1", "--yes"], "generations that were deleted stay deleted"),
    "prune": ("castore.services.prune.compact", ["prune", "--keep-last", "1"], "generations that were deleted stay deleted"),
    "compact": ("castore.services.prune.compact", ["compact"], "the store is consistent"),
    "verify": ("castore.maintenance.verify.verify", ["verify", "--packs"], "the store was not changed"),
    "repair": ("castore.maintenance.repair.verify", ["repair", "--yes"], "repeat the command"),
    "reindex": ("castore.store.index_updater.IndexUpdater.rebuild", ["reindex"], "the next command completes the index"),
    "rotate": ("castore.store.keys.administration.rotate", ["key", "rotate-writer"], "repeat the command"),
    "sign": ("castore.store.keys.administration.KeyAdministration.sign", ["key", "sign"], "repeat the command"),
    "init": ("castore.store.Store.create", ["init", "HOME/new"], "repeat the command"),
    "log": ("castore.store.generation_log.GenerationLog.sync", ["log"], ""),
}


@pytest.mark.parametrize("name", CASES)
def test_the_message_says_which_state_an_interrupt_leaves(run, home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    where, words, state = CASES[name]
    words = [word.replace("LIVE", f"{home}/live").replace("HOME", str(home)) for word in words]
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupt)
        code, message = run(*words)
    assert code == 130
    (line,) = [line for line in message.splitlines() if line.startswith("castore: ")]
    assert line.startswith("castore: interrupted: ") if state else line == "castore: interrupted"
    assert state in line
    if words[0] in {"snapshot", "rollback"}:
        assert (home / "live/f").read_text() == ("1" if name == "restored" else "3")
    assert run(*words)[0] == 0
