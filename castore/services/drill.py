"""Drill: restore a generation into a scratch directory, and check that it restores and is sound."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import msgspec

from castore.content.restore.tree_writer import restore_directory
from castore.content.stored_dirs import open_top
from castore.content.streams import StreamReader
from castore.errors import CastoreError, DamageError
from castore.model.counting import count as counted
from castore.model.generation import Origin
from castore.process.runners import run
from castore.process.scratch_dir import scratch_folder
from castore.process.users import account_of
from castore.progress import Progress, unwatched
from castore.services.details import read_details
from castore.services.events import event
from castore.services.recorded import trusted_origins
from castore.services.rollback.steps import contents_of
from castore.services.sources import engine_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable

    from castore.content.restore.metadata import Ownership
    from castore.model.generation import Generation, Part
    from castore.progress import Watch
    from castore.services.config import Service
    from castore.store import Store

_PREFIX: Final = "castore-drill-"


class Drilled(msgspec.Struct):
    """The result of a drill."""

    generation: Generation
    seconds: float = 0.0
    parts: dict[str, str] = {}
    """The findings, by part."""

    @property
    def text(self) -> str:
        """All findings, on one line."""
        return "; ".join(f"{name}: {finding}" for name, finding in self.parts.items())


class DrillRequest(msgspec.Struct, frozen=True):
    """A drill of a generation, with the settings of its service."""

    target: Generation
    configured: dict[str, Origin]
    """The parts in castore.toml."""
    settings: Service
    """The service in castore.toml, with its `drill-check`."""
    ownership: Ownership
    scratch: str | None = None
    """Where to create the scratch directory, or None for the system's temporary directory."""
    trust_recorded: bool = False
    """Whether to use the recorded origins of parts that castore.toml does not describe."""


def drill(
    store: Store,
    request: DrillRequest,
    *,
    note_finding: Callable[[str], None] = lambda _text: None,
    say: Callable[[str], None] = lambda _text: None,
    watch: Watch = unwatched,
) -> Drilled:
    """Restore a generation into a scratch directory and check it there; the live state is not touched.

    The service's `drill-check` gets the path of that directory in CASTORE_DRILL, and what engines report
    about a part in CASTORE_DRILL_PART_... note_finding: called with each finding. say: called with recorded
    origins that are not used. watch: called at the start of each part. Raises CastoreError if anything is not
    sound.
    """
    generation, settings = request.target, request.settings
    done = Drilled(generation)
    clock = time.monotonic()
    with event(store, "drill", generation.service) as note, ExitStack() as stack:
        note.of(generation)
        top = stack.enter_context(scratch_folder(_PREFIX, request.scratch, mode=0o711, say=note_finding))
        recorded = read_details(store, generation).origins
        known = trusted_origins(
            store, generation, recorded, request.configured, say, consent=request.trust_recorded, drill=True
        )
        # Other users can enter the directory: they must find no set-id program and no device there.
        owned = msgspec.structs.replace(request.ownership, privileges=False)
        work = _Drill(stack.enter_context(StreamReader(store)), stack, top, owned)
        for part in generation.parts:
            progress = Progress(total=part.size, most_files=part.files)
            watch(part.name, progress)
            try:
                finding = work.check_part(part, known.get(part.name, Origin()), progress)
            except CastoreError as error:
                raise type(error)(f"{generation.service}@{generation.number}:{part.name}: {error}") from error
            done.parts[part.name] = finding
            note_finding(f"{part.name}: {finding}")
        if settings.drill_check:
            work.run_check(settings)
            done.parts["drill-check"] = "passed"
        done.seconds = time.monotonic() - clock
        note.text = done.text
    return done


class _Drill:
    """The scratch directory of a drill, and what was restored into it."""

    def __init__(self, reader: StreamReader, stack: ExitStack, top: str, ownership: Ownership) -> None:
        self._reader = reader
        self._stack = stack
        self._ownership = ownership
        # Only castore may read trees and dumps: restored files have their original modes.
        self._place = _made(top, "state", 0o700)
        # A database server does not run as root, and must reach its own directory.
        self._servers = _made(top, "servers", 0o711)
        self._env = {"CASTORE_DRILL": self._place}
        """The variables of `drill-check`."""

    def check_part(self, part: Part, origin: Origin, progress: Progress) -> str:
        """Restore a part and check it; return the finding. Raises CastoreError if it is not sound."""
        folder = _made(self._place, part.name, 0o700)
        if part.kind == "tree":
            finding, found = _tree(self._reader, part, folder, self._ownership, progress)
        else:
            shared = _made(self._servers, part.name, 0o700)
            finding, found = _dump(self._reader, part, origin, (folder, shared), self._stack, progress)
        name = "".join(letter if letter.isalnum() else "_" for letter in part.name).upper()
        self._env |= {f"CASTORE_DRILL_{name}_{key}": value for key, value in found.items()}
        return finding

    def run_check(self, settings: Service) -> None:
        """Run `drill-check` of castore.toml. Raises ProgramError."""
        account = account_of(settings.run_as)
        if account is not None:
            os.chown(self._place, -1, account.pw_gid)
            os.chmod(self._place, 0o710)  # noqa: S103 - for that user only
            _let_in(account, self._env)
        run(settings.drill_check, timeout=settings.timeout, env=self._env, account=account)


def _made(above: str, name: str, mode: int) -> str:
    """Create a directory with exactly this mode, whatever the umask; return its path."""
    folder = os.path.join(above, name)
    os.mkdir(folder, 0o700)
    os.chmod(folder, mode)
    return folder


def _let_in(account: pwd.struct_passwd, env: dict[str, str]) -> None:
    """Give the user that runs `drill-check` access to sockets, and to files of castore's own user.

    A restored tree keeps its owners and modes.
    """
    for key, path in env.items():
        name = key.rpartition("_")[2]
        if name in {"SOCKET", "HOST"} and os.path.isabs(path):
            folder = path if name == "HOST" else os.path.dirname(path)
            if os.stat(folder).st_uid != account.pw_uid:
                # The directory stays the server's; the user gets access as its group.
                os.chown(folder, -1, account.pw_gid)
                os.chmod(folder, 0o710)  # noqa: S103 - for that user only
        elif name == "PATH" and os.path.isfile(path) and os.stat(path).st_uid == os.geteuid():
            for one in (os.path.dirname(path), path):
                os.chown(one, account.pw_uid, account.pw_gid)


def _tree(
    reader: StreamReader, part: Part, folder: str, ownership: Ownership, progress: Progress
) -> tuple[str, dict[str, str]]:
    if part.content is None:
        raise DamageError("the tree has no content")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        report = restore_directory(reader, fd, open_top(reader, part.content), ownership, progress)
    finally:
        os.close(fd)
    if report.damaged:
        path, reason = report.damaged[0]
        where = path.decode(errors="backslashreplace")
        damaged = counted(len(report.damaged), "file is", "files are")
        raise DamageError(f"{damaged} damaged, {where} the first: {reason}")
    if progress.files != part.files:
        raise DamageError(f"{counted(progress.files, 'file was', 'files were')} restored, of {part.files}")
    warned = f", {len(report.warnings)} of them not with all their metadata" if report.warnings else ""
    return f"{counted(progress.files, 'file')}, {counted(progress.read, 'byte')}{warned}", {"PATH": folder}


def _dump(
    reader: StreamReader,
    part: Part,
    found: Origin,
    folders: tuple[str, str],
    stack: ExitStack,
    progress: Progress,
) -> tuple[str, dict[str, str]]:
    """Restore a dump. folders: one that only castore can enter, and one that other users can reach."""
    folder, shared = folders
    source = engine_of(found)
    contents = contents_of(reader, part, lambda: None, progress)
    if source is not None:
        drilled = stack.enter_context(source.engine.drill(shared, contents))
        if drilled is not None:
            return drilled
    path = os.path.join(folder, part.name)
    count = 0
    with open(path, "xb") as file:
        for piece in contents.restore_dump():
            count += file.write(piece)
    if count != part.size:
        raise DamageError(f"{counted(count, 'byte was', 'bytes were')} restored, of {part.size}")
    return counted(count, "byte"), {"PATH": path}
