"""What this machine has seen of a store, so that it does not accept an older copy for the present one.

The storage provider can restore an old copy of a store: each of its objects is authentic, and so is the
whole. Only what a machine remembers shows that something is older. That is one small file, in the state
folder and not in the cache, written durably and only when it changes. It holds the highest `config/N` with
its hash and its admins; and for each service the highest generation, with its session to recognise it.

A machine that remembers nothing accepts what it finds. A copy of a store at another location has a memory
of its own. A machine that removes generations leaves a record of that in the store (`removals`), so that
other machines know that it was intended. What disappeared without a record is refused until the user says
that it is right (`accept`); a snapshot reports it and is committed nevertheless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import StaleStoreError, StorageError
from castore.fs.durable import read_private, write_private
from castore.state.locks import waiting_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from castore.model.generation import Generation
    from castore.model.removals import Removals
    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.store.format.config import SealedConfig

_WAY_OUT: Final = (
    "an older copy of the store may have replaced it, or another machine removed generations; "
    "if this is intended, repeat the command with --accept-older, which makes this machine "
    "remember the present state"
)


class ServiceHighWater(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen of a service."""

    last: int = 0
    """The highest number that a generation ever had: new generations get higher ones."""
    number: int = 0
    """The highest generation that must exist."""
    session: str = ""
    """The session of that generation, in hex."""
    removed: tuple[int, ...] = ()
    """Generations with higher numbers that this machine removed, or is about to remove."""
    missing: dict[int, str] = {}
    """Generations that disappeared without a record, with their sessions: reported until accepted."""
    host: str = ""
    """The host that took the highest generation, which may remove it."""

    def with_generation(self, number: int, session: str, host: str = "") -> ServiceHighWater:
        """Return this with a generation that was seen. The highest one must exist from now on."""
        if number <= self.number or number in self.removed:
            return msgspec.structs.replace(self, last=max(self.last, number))
        removed = tuple(former for former in self.removed if former > number)
        return msgspec.structs.replace(
            self, last=max(self.last, number), number=number, session=session, host=host, removed=removed
        )


class FreshnessState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of the file."""

    config: int = 0
    services: dict[str, ServiceHighWater] = {}
    config_hash: bytes = b""
    """BLAKE3 of the bytes of that configuration; empty if none was accepted yet."""
    admins: tuple[bytes, ...] = ()
    """The public keys whose configurations are accepted if this machine has no writer key."""


class PresentGenerations(msgspec.Struct, frozen=True):
    """The generations that a store has now."""

    newest: Mapping[str, Generation]
    """The highest generation of each service."""
    session_of: Callable[[str, int], str | None]
    """Returns the session of a generation, in hex.

    "" if the generation is damaged, which is reported elsewhere; None if it does not exist.
    """
    removals: Callable[[str], Removals]
    """Returns the generations of a service that other machines removed on purpose."""


class FreshnessGuard:
    """The memory of a store, in the file `path`; safe to use from several processes at once."""

    def __init__(self, path: str, location: str, elsewhere: Iterable[str] = ()) -> None:
        """Open the memory. elsewhere: the files of the same store at other locations."""
        self._path = path
        self._location = location
        self._elsewhere = [other for other in elsewhere if other != path]

    def last(self, service: str) -> int:
        """Return the highest number that a generation of a service ever had at any location of the store.

        All locations count, because the state of a service on this machine names generations by their
        numbers.
        """
        memories = [self.memory(), *self._memories_elsewhere()]
        return max(self._of(memory, service).last for memory in memories)

    def services(self) -> list[str]:
        """Return the services of which a generation was seen."""
        return sorted(self.memory().services)

    def check_config(self, number: int, digest: bytes = b"") -> None:
        """Refuse a store with an older configuration than seen before. Raises StaleStoreError, StorageError.

        digest: the hash of the configuration's bytes, if it is authentic.
        """
        memory = self.memory()
        if number < memory.config:
            raise StaleStoreError(
                f"the store at {self._location} is older than this machine has seen it: its "
                f"configuration was config/{memory.config} and is config/{number}, so that removed "
                f"recipients may be valid again; {_WAY_OUT}"
            )
        if number == memory.config and digest and memory.config_hash not in {b"", digest}:
            raise StaleStoreError(
                f"config/{number} of the store at {self._location} is not the one that this machine has "
                f"seen: recipients, admins or writers may differ; {_WAY_OUT}"
            )

    def remember_config(self, sealed: SealedConfig, admins: Iterable[bytes], *, accept: bool) -> None:
        """Remember an accepted configuration; with `accept`, also one with a lower number.

        admins: the keys whose configurations are accepted from now on. Raises StorageError with `accept`.
        """

        def change(memory: FreshnessState) -> FreshnessState:
            if sealed.number < memory.config and not accept:
                return memory
            return msgspec.structs.replace(
                memory, config=sealed.number, config_hash=sealed.hash, admins=tuple(admins)
            )

        self._change(change, strict=accept)

    def admins(self) -> frozenset[bytes]:
        """Return the keys whose configurations are accepted here or, if none, at other locations."""
        own = self.memory().admins
        return frozenset(own or (key for memory in self._memories_elsewhere() for key in memory.admins))

    def compare(
        self,
        memory: FreshnessState,
        present: PresentGenerations,
        *,
        accept: bool,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Refuse a store in which a service is older than seen before; remember the highest generations.

        memory: what was remembered before the store was read. report: receives the message instead of an
        error being raised; the generations that disappeared are remembered as missing. Raises
        StaleStoreError, which names all services that are older, and StorageError.
        """
        lost, reasons = ({}, []) if accept else _lost(memory, present)
        if reasons:
            message = (
                f"the store at {self._location} is older than this machine has seen it, or a different "
                f"one: {'; '.join(reasons)}; {_WAY_OUT}"
            )
            if report is None:
                raise StaleStoreError(message)
            report(message)

        def change(now: FreshnessState) -> FreshnessState:
            services = dict(now.services)
            if accept:
                services = {name: ServiceHighWater(last=seen.last) for name, seen in services.items()}
            for name in memory.services.keys() & services.keys():
                highest = present.newest[name].number if name in present.newest else 0
                seen, before = services[name], memory.services[name]
                services[name] = _without_missing(seen, before, lost.get(name, {}), highest)
            for name, one in present.newest.items():
                seen = services.get(name, ServiceHighWater())
                services[name] = seen.with_generation(one.number, one.session.hex(), one.host)
            return msgspec.structs.replace(now, services=services)

        self._change(change, strict=accept)

    def remember_commit(self, generation: Generation) -> None:
        """Remember a generation that was just committed."""

        def change(memory: FreshnessState) -> FreshnessState:
            seen = self._of(memory, generation.service)
            seen = seen.with_generation(generation.number, generation.session.hex(), generation.host)
            return msgspec.structs.replace(memory, services={**memory.services, generation.service: seen})

        self._change(change)

    def forget(self, service: str, numbers: Iterable[int], rest: Generation | None) -> None:
        """Stop expecting generations of a service, which are then removed on purpose.

        rest: the highest generation that stays. Removed numbers are not used again. Call this before they are
        removed: a generation that exists after all does no harm, but a missing one would be reported.
        Raises StorageError.
        """
        gone = tuple(numbers)

        def change(memory: FreshnessState) -> FreshnessState:
            seen = self._of(memory, service)
            last = max([seen.last, *gone])
            number, session, host = seen.number, seen.session, seen.host
            if number in gone:
                number, session, host = 0, "", ""
                if rest is not None:
                    number, session, host = rest.number, rest.session.hex(), rest.host
            removed = tuple(sorted({former for former in (*seen.removed, *gone) if former > number}))
            changed = ServiceHighWater(last, number, session, removed, seen.missing, host)
            return msgspec.structs.replace(memory, services={**memory.services, service: changed})

        self._change(change, strict=True)

    def _memories_elsewhere(self) -> list[FreshnessState]:
        return [FreshnessGuard(path, self._location).memory() for path in self._elsewhere]

    @staticmethod
    def _of(memory: FreshnessState, service: str) -> ServiceHighWater:
        return memory.services.get(service, ServiceHighWater())

    def memory(self) -> FreshnessState:
        """Return what this machine remembers now. Raises StorageError."""
        text = read_private(self._path)
        if text is None:
            return FreshnessState()
        try:
            return msgspec.json.decode(text, type=FreshnessState)
        except (msgspec.MsgspecError, UnicodeError):
            raise StorageError(
                f"{self._path} is damaged, which records what this machine has seen of the store at "
                f"{self._location}; delete it if that store is the present one"
            ) from None

    def _change(self, change: Callable[[FreshnessState], FreshnessState], *, strict: bool = False) -> None:
        """Change the file if its content differs. Raises StorageError if reading fails or `strict` is set."""
        memory = self.memory()
        if change(memory) == memory:
            return
        try:
            with waiting_lock(f"{self._path}.lock"):
                # Another process may have changed it meanwhile: apply the change to what it wrote.
                memory = self.memory()
                changed = change(memory)
                if changed != memory:
                    write_private(self._path, msgspec.json.encode(changed) + b"\n")
        except StorageError:
            # A full or read-only disk must not prevent a restore; the next command remembers.
            if strict:
                raise


def _lost(memory: FreshnessState, present: PresentGenerations) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Return the sessions of generations that disappeared, by service and number, and the reasons."""
    lost: dict[str, dict[int, str]] = {}
    reasons = []
    for service, seen in sorted(memory.services.items()):
        if changes := _went_back(service, seen, present):
            lost[service] = {number: session for number, session, _ in changes}
            reasons += [reason for *_, reason in changes]
    return lost, reasons


def _without_missing(
    seen: ServiceHighWater, before: ServiceHighWater, missing: dict[int, str], highest: int
) -> ServiceHighWater:
    """Return what was seen of a service, without its highest generation if that does not exist any more.

    before: what was seen before the store was read. missing: the generations that disappeared without
    explanation. highest: the number of the highest generation that exists.
    """
    is_lower = before.number > highest  # removed on purpose, or missing
    if seen.number == before.number and (seen.number in missing or is_lower):
        seen = msgspec.structs.replace(seen, number=0, session="", host="")
    return msgspec.structs.replace(seen, missing=missing)


def _went_back(service: str, seen: ServiceHighWater, state: PresentGenerations) -> list[tuple[int, str, str]]:
    """Return (number, session, message) of each generation that is missing or differs from what was seen."""
    newest = state.newest.get(service)
    expected = dict(seen.missing)
    if seen.number:
        expected[seen.number] = seen.session
    changes = []
    for number, session in sorted(expected.items()):
        present = state.session_of(service, number)
        newer = number == seen.number and newest is not None and newest.number > number
        if present is None and not newer and not _is_removed(state, service, number, seen):
            now = f"is {service}@{newest.number}" if newest is not None else "there is none"
            what = "the newest generation was" if number == seen.number else "there was also"
            changes.append((number, session, f"{what} {service}@{number}, and now {now}"))
        elif present and present != session:
            reason = f"{service}@{number} is not the generation that had this number before"
            changes.append((number, session, reason))
    return changes


def _is_removed(state: PresentGenerations, service: str, number: int, seen: ServiceHighWater) -> bool:
    host = seen.host if number == seen.number else ""
    return state.removals(service).includes(number, host)


def seen_at(paths: MachinePaths, store_id: bytes, storage: Storage) -> FreshnessGuard:
    """Return what this machine has seen of the store in `storage`."""
    path = paths.seen_of(store_id, storage.canonical_location)
    return FreshnessGuard(path, storage.location, paths.all_seen_of(store_id))
