"""A service's state back to a generation: trees where they came from, dumps into their programs.

A plan first, then its execution: a safety generation of the present state, the trees in place, then
the dumps. If a step fails, the trees are put back from what was kept aside and dumps that were fed
already are fed again from the safety generation.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from castore.content.diff import diff_trees
from castore.content.directories import open_top
from castore.content.inplace import Comparison, InPlace, TreePlan, plan_tree
from castore.content.streams import StreamReader
from castore.errors import CastoreError, UsageError
from castore.model.generation import Details, Origin, decode_details
from castore.services.programs import feed
from castore.services.snapshot import (
    FileSource,
    ProgramSource,
    Source,
    TreeSource,
    last_scan,
    left_out,
    rules_of,
    snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from castore.content.attributes import Ownership
    from castore.model.generation import Generation, Part
    from castore.model.tally import Tally
    from castore.store import Store


@dataclass(frozen=True)
class DumpPlan:
    """How a dump is put back: into a program, or into the file it came from."""

    part: Part
    program: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True)
class RollbackPlan:
    """What a roll-back would do."""

    target: Generation
    trees: dict[str, TreePlan] = field(default_factory=dict)
    dumps: tuple[DumpPlan, ...] = ()


@dataclass
class RolledBack:
    """What a roll-back did."""

    target: Generation
    safety: Generation | None
    problems: list[tuple[str, bytes, str]]
    """(part, path, reason) of metadata that could not be set."""


def read_details(store: Store, generation: Generation) -> Details:
    """Return what a generation tells holders of an identity. Raises IdentityError, DamageError."""
    with StreamReader(store) as reader:
        return decode_details(reader.read_all(generation.details.ref))


def plan_rollback(
    store: Store,
    target: Generation,
    origins: dict[str, Origin],
    ownership: Ownership,
    safety: Generation | None = None,
    *,
    leave_out: Sequence[str] = (),
) -> RollbackPlan:
    """Compare the live state with `target` and return what is to be done.

    origins: where each part belongs now. leave_out: directories that are left alone: castore's own. With a
    safety generation of the live state, files count as changed where their content differs from it,
    whatever their times say. Raises UsageError for a part that has nowhere to go.
    """
    trees = {}
    dumps = []
    with StreamReader(store) as reader:
        for part in target.parts:
            origin = origins.get(part.name, Origin())
            if part.kind == "dump":
                dumps.append(_plan_dump(part, origin))
                continue
            if not origin.path or part.content is None:
                raise UsageError(f"where the tree {part.name!r} belongs is not recorded: use 'restore'")
            changed = _changed(reader, safety, part)
            top = open_top(reader, part.content)
            live = os.fsdecode(origin.path)
            rules = rules_of(origin, left_out(store, leave_out))
            with last_scan(store, target.service, part.name, live, rules) as scan:
                comparison = Comparison(changed, rules=rules, scan=scan)
                trees[part.name] = plan_tree(reader, top, live, ownership, comparison)
    return RollbackPlan(target, trees, tuple(dumps))


def _plan_dump(part: Part, origin: Origin) -> DumpPlan:
    if origin.restore:
        return DumpPlan(part, program=origin.restore)
    if origin.path:
        return DumpPlan(part, path=os.fsdecode(origin.path))
    raise UsageError(
        f"no program is known that takes the dump {part.name!r} back in: name one with "
        f"--restore {part.name}='PROGRAM ...', or as 'restore' of the part in castore.toml"
    )


def _changed(reader: StreamReader, safety: Generation | None, part: Part) -> set[bytes]:
    """Return the paths of a tree whose content is not what the safety generation just saw."""
    before = safety.part(part.name) if safety is not None else None
    if before is None or before.content is None or part.content is None:
        return set()
    differences = diff_trees(reader, before.content, part.content)
    return {found.path for found in differences if found.change == "content"}


def present_sources(target: Generation, origins: dict[str, Origin]) -> dict[str, Source]:
    """Return how to take the present state of the parts of `target`. Raises UsageError."""
    sources: dict[str, Source] = {}
    for part in target.parts:
        origin = origins.get(part.name, Origin())
        if part.kind == "tree":
            sources[part.name] = TreeSource(
                os.fsdecode(origin.path),
                origin.exclude,
                origin.one_file_system,
                origin.exclude_caches,
            )
        elif origin.dump:
            sources[part.name] = ProgramSource(origin.dump, origin.restore)
        elif origin.path:
            if os.path.exists(origin.path):
                sources[part.name] = FileSource(os.fsdecode(origin.path))
        else:
            raise UsageError(
                f"no program is known that dumps the present state of {part.name!r}: name it as "
                "'dump' of the part in castore.toml, or go without a safety generation: --no-safety"
            )
    return sources


def roll_back(
    store: Store,
    target: Generation,
    origins: dict[str, Origin],
    ownership: Ownership,
    *,
    with_safety: bool = True,
    revision: str = "",
    leave_out: Sequence[str] = (),
    progress: Callable[[str, Tally], None] = lambda _name, _tally: None,
    tally: Tally,
) -> RolledBack:
    """Put the state of `target` back. The caller holds the service's lock.

    revision: of the present state, recorded with the safety generation. Raises CastoreError; then the
    present state is as it was, or the message says what is not.
    """
    # Before anything is touched: every part has a place to go to.
    for dump in plan_rollback(store, target, origins, ownership, leave_out=leave_out).dumps:
        if dump.program and shutil.which(dump.program[0]) is None:
            raise UsageError(
                f"there is no program {dump.program[0]!r} to take the dump {dump.part.name!r} in: "
                "nothing was touched"
            )
    safety = None
    if with_safety:
        sources = present_sources(target, origins)
        if sources:
            safety = snapshot(
                store,
                target.service,
                sources,
                revision=revision,
                safety=True,
                leave_out=leave_out,
                progress=progress,
            )
    plan = plan_rollback(store, target, origins, ownership, safety, leave_out=leave_out)
    with StreamReader(store) as reader:
        problems = _Execution(reader, plan, safety, ownership, tally).run()
    return RolledBack(target, safety, problems)


class _Execution:
    def __init__(
        self,
        reader: StreamReader,
        plan: RollbackPlan,
        safety: Generation | None,
        ownership: Ownership,
        tally: Tally,
    ) -> None:
        self._reader = reader
        self._plan = plan
        self._safety = safety
        self._ownership = ownership
        self._tally = tally
        self._trees: dict[str, InPlace] = {}
        self._files: list[_FileSwap] = []
        self._fed: list[DumpPlan] = []

    def run(self) -> list[tuple[str, bytes, str]]:
        """Do it all, or take it back and raise."""
        try:
            for name, plan in self._plan.trees.items():
                self._trees[name] = InPlace(self._reader, plan, self._ownership, self._tally)
                self._trees[name].apply()
            for dump in self._plan.dumps:
                self._put(dump)
        except BaseException as error:
            self._take_back(error)
            raise
        problems = []
        for name, tree in self._trees.items():
            problems += [(name, path, reason) for path, reason in tree.problems]
            tree.keep()
        for file in self._files:
            file.keep()
        return problems

    def _put(self, dump: DumpPlan) -> None:
        data = self._reader.read(dump.part.content)
        if dump.program:
            self._fed.append(dump)
            feed(dump.program, data)
        else:
            self._files.append(_FileSwap(dump.path))
            self._files[-1].write(data)

    def _take_back(self, cause: BaseException) -> None:
        """Undo what was done; raise if the present state could not be put back whole."""
        failed = []
        done: list[_FileSwap | InPlace] = [*self._trees.values(), *self._files]
        for changed in reversed(done):
            try:
                changed.undo()
            except CastoreError as error:
                failed.append(str(error))
        for dump in reversed(self._fed):
            before = self._safety.part(dump.part.name) if self._safety else None
            if before is None:
                failed.append(f"{dump.part.name!r} may be half restored: no safety generation")
                continue
            try:
                feed(dump.program, self._reader.read(before.content))
            except CastoreError as error:
                failed.append(f"{dump.part.name!r} could not be put back: {error}")
        if failed:
            number = f"; generation {self._safety.number} holds it" if self._safety else ""
            message = f"{cause}; and the present state is not whole: {'; '.join(failed)}{number}"
            kind = type(cause) if isinstance(cause, CastoreError) else CastoreError
            raise kind(message) from cause


class _FileSwap:
    """A file written anew; the one that was there is kept beside it until the caller decides."""

    def __init__(self, path: str) -> None:
        # Of a symbolic link, what it leads to is written: that is what was taken.
        self._path = os.path.realpath(path)
        mark = os.urandom(4).hex()
        self._beside = f"{self._path}.castore-{mark}"
        self._kept = f"{self._path}.castore-aside-{mark}"
        self._swapped = False

    def write(self, data: Iterable[bytes]) -> None:
        """Write beside the file, make it durable, and put it in its place. Raises CastoreError."""
        try:
            with open(self._beside, "xb") as file:
                file.writelines(data)
                if os.path.exists(self._path):
                    info = os.stat(self._path)
                    os.chown(file.fileno(), info.st_uid, info.st_gid)
                    os.chmod(file.fileno(), info.st_mode & 0o7777)
                file.flush()
                os.fsync(file.fileno())
            if os.path.exists(self._path):
                os.link(self._path, self._kept)
            self._swapped = True
            os.replace(self._beside, self._path)
        except OSError as error:
            raise CastoreError(f"cannot write {self._path}: {error.strerror}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._beside)

    def undo(self) -> None:
        """Put the file back that was there, or none. Raises CastoreError."""
        try:
            if os.path.exists(self._kept):
                os.replace(self._kept, self._path)
            elif self._swapped:
                os.unlink(self._path)
            self.keep()  # where both names are one file still, the renaming did nothing
        except OSError as error:
            raise CastoreError(
                f"{self._path} could not be put back ({error.strerror}): it is {self._kept}"
            ) from error

    def keep(self) -> None:
        """Let the new one stay."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._kept)
