"""What this machine has seen of a store, so that an older copy is not taken for the present one.

Whoever keeps the store's objects can put yesterday's in their place: every one of them is authentic,
and so is the whole. Only the memory of a machine tells that something went back. It is one small file,
in the state folder and not in the cache, written durably and only when it changed: the highest
`config/N` with its hash and its admins, and of each service the highest generation with its session,
which says whether it is still the same one.

A machine that remembers nothing accepts what it finds. A copy of a store at another place has a memory
of its own. A machine that removes generations leaves a record of that in the store (`removals`), so that
other machines know that it was intended. What disappeared without one is refused until the user says that
it is right (`accept`); a snapshot reports it and is committed nevertheless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import StaleStoreError, StorageError
from castore.model.removals import Removals
from castore.state.locks import waiting_lock
from castore.state.paths import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from castore.model.generation import Generation
    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.store.format.config import SealedConfig

_WAY_OUT: Final = (
    "an older copy of the store may have been put in its place, or another machine removed generations; "
    "if this is as it should be, repeat the command with --accept-older, which makes this machine "
    "remember the present state"
)


class ServiceHighWater(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen of a service."""

    last: int = 0
    """The highest number that a generation ever had: no later one gets it, or a lower one."""
    number: int = 0
    """The highest generation that has to be there."""
    session: str = ""
    """The session that made it, in hex."""
    removed: tuple[int, ...] = ()
    """Those that this machine removed, or is about to, with numbers above it."""
    missing: dict[int, str] = {}
    """Generations that disappeared without a record, with their sessions: reported until accepted."""
    host: str = ""
    """The host that the highest generation was taken on, which may remove it."""

    def with_generation(self, number: int, session: str, host: str = "") -> ServiceHighWater:
        """Return this with a generation that was seen: the highest counts, and it has to stay."""
        if number <= self.number or number in self.removed:
            return msgspec.structs.replace(self, last=max(self.last, number))
        removed = tuple(one for one in self.removed if one > number)
        return msgspec.structs.replace(
            self, last=max(self.last, number), number=number, session=session, host=host, removed=removed
        )


class FreshnessState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the file holds."""

    config: int = 0
    services: dict[str, ServiceHighWater] = {}
    config_hash: bytes = b""
    """BLAKE3 of the bytes of that configuration; empty: none was accepted yet."""
    admins: tuple[bytes, ...] = ()
    """The public keys whose configurations are accepted, where this machine has no writer key."""


class FreshnessGuard:
    """The memory of a store, in the file `path`; safe to use from several processes at once."""

    def __init__(self, path: str, location: str, elsewhere: Iterable[str] = ()) -> None:
        """Elsewhere: the memories of the same store at other places."""
        self._path = path
        self._location = location
        self._elsewhere = [one for one in elsewhere if one != path]

    def last(self, service: str) -> int:
        """Return the highest number that a generation of a service ever had, as far as is known.

        At any place: what this machine keeps of a service names generations by their numbers.
        """
        others = (FreshnessGuard(path, self._location)._read() for path in self._elsewhere)  # noqa: SLF001
        return max(self._of(memory, service).last for memory in (self._read(), *others))

    def services(self) -> list[str]:
        """Return the services of which anything was seen."""
        return sorted(self._read().services)

    def check_config(self, number: int, digest: bytes = b"") -> None:
        """Refuse a store whose configuration went back. Raises StaleStoreError, StorageError.

        digest: the hash of its bytes, if it is authentic.
        """
        memory = self._read()
        if number < memory.config:
            raise StaleStoreError(
                f"the store at {self._location} is older than this machine has seen it: its "
                f"configuration was config/{memory.config} and is config/{number}, so that recipients that "
                f"were removed may be back; {_WAY_OUT}"
            )
        if number == memory.config and digest and memory.config_hash not in {b"", digest}:
            raise StaleStoreError(
                f"config/{number} of the store at {self._location} is not the one that this machine has "
                f"seen: recipients, admins or writers may be others; {_WAY_OUT}"
            )

    def config(self, sealed: SealedConfig, admins: Iterable[bytes], *, accept: bool) -> None:
        """Remember an accepted configuration; with `accept`, also one with a lower number.

        admins: the keys whose configurations are accepted from now on.
        """

        def change(memory: FreshnessState) -> FreshnessState:
            if sealed.number < memory.config and not accept:
                return memory
            return msgspec.structs.replace(
                memory, config=sealed.number, config_hash=sealed.hash, admins=tuple(admins)
            )

        self._change(change, strict=accept)

    def admins(self) -> frozenset[bytes]:
        """Return the keys whose configurations are accepted, here, or else at the store's other places."""
        others = (FreshnessGuard(path, self._location)._read().admins for path in self._elsewhere)  # noqa: SLF001
        return frozenset(self._read().admins or (key for one in others for key in one))

    def memory(self) -> FreshnessState:
        """Return what is remembered now."""
        return self._read()

    def compare(
        self,
        memory: FreshnessState,
        present: Mapping[str, Generation],
        session_of: Callable[[str, int], str | None],
        *,
        accept: bool,
        removals: Callable[[str], Removals] = lambda _service: Removals(),
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Refuse a store in which a service went back, and remember the highest generations.

        memory: what was remembered before the store was looked at. present: the highest generation
        of each service. session_of: the session, in hex, of a generation; "" if it is there, but
        damaged, which is reported elsewhere; None if it does not exist. removals: the generations of a
        service that other machines removed on purpose. report: is passed what is wrong, instead of an
        error; the generations that disappeared are remembered as missing. Raises StaleStoreError, which names
        all services that went back, StorageError.
        """
        memory_before = memory
        lost: dict[str, dict[int, str]] = {}
        # Those whose newest generation was removed on purpose, and those that went back unexplained.
        went = {
            name
            for name, seen in memory.services.items()
            if seen.number > (present[name].number if name in present else 0)
        }
        if not accept:
            reasons = []
            for service, seen in sorted(memory.services.items()):
                found = _went_back(service, seen, present.get(service), session_of, removals)
                if found:
                    lost[service] = {number: session for number, session, _ in found}
                    reasons += [reason for *_, reason in found]
            if reasons:
                message = (
                    f"the store at {self._location} is older than this machine has seen it, or another "
                    f"one: {'; '.join(reasons)}; {_WAY_OUT}"
                )
                if report is None:
                    raise StaleStoreError(message)
                report(message)

        def change(memory: FreshnessState) -> FreshnessState:
            services = dict(memory.services)
            if accept:
                services = {name: ServiceHighWater(last=seen.last) for name, seen in services.items()}
            for name in memory_before.services.keys() & services.keys():
                before, seen = memory_before.services[name], services[name]
                missing = lost.get(name, {})
                if seen.number == before.number and (seen.number in missing or name in went):
                    seen = msgspec.structs.replace(seen, number=0, session="", host="")
                services[name] = msgspec.structs.replace(seen, missing=missing)
            for name, newest in present.items():
                seen = services.get(name, ServiceHighWater())
                services[name] = seen.with_generation(newest.number, newest.session.hex(), newest.host)
            return msgspec.structs.replace(memory, services=services)

        self._change(change, strict=accept)

    def committed(self, generation: Generation) -> None:
        """Remember a generation that was just committed."""

        def change(memory: FreshnessState) -> FreshnessState:
            seen = self._of(memory, generation.service)
            seen = seen.with_generation(generation.number, generation.session.hex(), generation.host)
            return msgspec.structs.replace(
                memory, services={**memory.services, generation.service: seen}
            )

        self._change(change)

    def forget(self, service: str, numbers: Iterable[int], rest: Generation | None) -> None:
        """Let generations of a service go, which are then removed on purpose.

        rest: the highest one that stays. Their numbers are not given again. It is to be called before
        they are removed: what is still there in the end harms nothing, what is gone would be missed.
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
            removed = tuple(sorted({one for one in (*seen.removed, *gone) if one > number}))
            changed = ServiceHighWater(last, number, session, removed, seen.missing, host)
            return msgspec.structs.replace(memory, services={**memory.services, service: changed})

        self._change(change, strict=True)

    @staticmethod
    def _of(memory: FreshnessState, service: str) -> ServiceHighWater:
        return memory.services.get(service, ServiceHighWater())

    def _read(self) -> FreshnessState:
        text = read_private(self._path)
        if text is None:
            return FreshnessState()
        try:
            return msgspec.json.decode(text, type=FreshnessState)
        except (msgspec.MsgspecError, UnicodeError):
            raise StorageError(
                f"{self._path} is damaged, which tells what this machine has seen of the store at "
                f"{self._location}; delete it if that store is the present one"
            ) from None

    def _change(self, change: Callable[[FreshnessState], FreshnessState], *, strict: bool = False) -> None:
        """Change the file, if that changes anything; raises StorageError, if `strict`."""
        memory = self._read()
        if change(memory) == memory:
            return
        try:
            with waiting_lock(f"{self._path}.lock"):
                # Another process may have changed it meanwhile, and its highest counts as ours does.
                memory = self._read()
                changed = change(memory)
                if changed != memory:
                    write_private(self._path, msgspec.json.encode(changed) + b"\n")
        except StorageError:
            # A disk that is full, or read only, keeps nobody from restoring; the next command remembers.
            if strict:
                raise


def _went_back(
    service: str,
    seen: ServiceHighWater,
    newest: Generation | None,
    session_of: Callable[[str, int], str | None],
    removals: Callable[[str], Removals],
) -> list[tuple[int, str, str]]:
    """Return (number, session, what a message says) of each generation that is not as it was seen."""
    expected = dict(seen.missing)
    if seen.number:
        expected[seen.number] = seen.session
    found = []
    for number, session in sorted(expected.items()):
        present = session_of(service, number)
        newer = number == seen.number and newest is not None and newest.number > number
        if present is None and not newer and not _is_removed(removals, service, number, seen):
            now = f"is {service}@{newest.number}" if newest is not None else "there is none"
            what = "the newest generation was" if number == seen.number else "there was also"
            found.append((number, session, f"{what} {service}@{number}, and now {now}"))
        elif present and present != session:
            reason = f"{service}@{number} is not the generation that had this number before"
            found.append((number, session, reason))
    return found


def _is_removed(
    removals: Callable[[str], Removals], service: str, number: int, seen: ServiceHighWater
) -> bool:
    host = seen.host if number == seen.number else ""
    return removals(service).includes(number, host)


def seen_at(places: MachinePaths, store_id: bytes, storage: Storage) -> FreshnessGuard:
    """Return what this machine has seen of the store in `storage`."""
    path = places.seen_of(store_id, storage.place)
    return FreshnessGuard(path, storage.location, places.all_seen_of(store_id))
