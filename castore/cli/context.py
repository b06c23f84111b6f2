"""What every command needs first: the configuration, the store, the identity."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from castore.cli import environment, formatting, identity_files, missing_store
from castore.state import directories

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.crypto import Identity, Recipient
    from castore.model.generation import Generation, Origin
    from castore.services.config import Service, Settings
    from castore.services.snapshot import Source
    from castore.store import Store
    from castore.store.keys.trust import Agree

_SHOWN = 20


def _note(line: str) -> None:
    print(f"castore: note: {formatting.one_line(line)}", file=sys.stderr)


@dataclass(frozen=True)
class CliContext:
    """The options that all commands share, and what follows from them."""

    store: str | None
    config: str | None
    identity_file: str | None
    accept_older: bool = False
    host: str | None = None
    trusted: tuple[str, ...] = ()
    """Admin keys that --trust-admin names."""

    @cached_property
    def settings(self) -> Settings | None:
        """What castore.toml says, if there is one. Raises ConfigError."""
        path = environment.find_config(self.config)
        if path is None:
            return None
        from castore.services.config import load

        return load(path, home=directories.home(), programs=False, tolerant=True)

    def store_path(self, argument: str | None = None) -> str:
        """Return where the store is, or would be made."""
        explicit = argument or self.store or environment.store_from_environment()
        if explicit:
            return directories.absolute(explicit)
        configured = self.settings.store if self.settings is not None else None
        return configured or environment.default_store()

    def open_store(
        self,
        *,
        make: bool = False,
        local_key: bool = True,
        confined: Sequence[str] | None = None,
        agree: Agree | None = None,
    ) -> Store:
        """Open the store; with `make`, make the default one if nothing at all is configured.

        local_key: by the writer key of this machine, where it has one; else by the identity. confined: what
        the command changes apart from the store and castore's own files; it runs no program. agree: asks
        whether a configuration that no known admin has signed is right.
        """
        from castore.crypto import Admin
        from castore.errors import NotFoundError
        from castore.storage import LocalStorage
        from castore.store import Store

        path = self.store_path()
        if make and path == environment.default_store() and not os.path.exists(path):
            self._make_first(path)
        if confined is not None:
            self._confine(path, confined)
        try:
            store = Store.open(
                *(LocalStorage(path), directories.machine_paths(), self.identity()),
                local_key=local_key,
                accept_older=self.accept_older,
                trust=[Admin.parse(one).key for one in self.trusted],
                agree=agree,
            )
        except NotFoundError as error:
            raise NotFoundError(f"{error}: {missing_store.instead_of(path)}") from None
        if self.settings is not None and self.settings.reference_cache is not None:
            store.references.limit = self.settings.reference_cache
        if self.settings is not None:
            store.configured_host = self.settings.host or ""
            store.isolate_writers = self.settings.isolate_writers
            store.configured_recipients = self.settings.recipients
            store.former_hosts = frozenset(self.settings.former_hosts)
        store.chosen_host = self.host
        store.say = lru_cache(None)(_note)
        for name, reason in store.passed_over.items():
            _note(
                f"{name} is not accepted, and nothing depends on it: {reason} ('castore repair' with the "
                "identity of an admin removes it)"
            )
        return store

    def _confine(self, path: str, writable: Sequence[str]) -> None:
        """Confine this process to the store, castore's own files and what else a command changes."""
        from castore.cli.confinement import confine
        from castore.errors import StorageError
        from castore.state.paths import make_private_directory

        if not os.path.isdir(path) or identity_files.runs_identity_program(self.identity_file):
            return
        own = directories.machine_paths()
        for folder in (own.state, own.cache):
            with contextlib.suppress(StorageError):
                make_private_directory(folder)
        # A restore looks up names of users, which may be in a directory service.
        confine([path, own.state, own.cache, *writable], network=bool(writable))

    def identity(self) -> Callable[[], Identity]:
        """Return how to get the identity when it is needed."""
        return identity_files.identity_provider(self.identity_file, self.default_identity)

    def identity_text(self) -> tuple[str, str]:
        """Return the identity as text, which may be locked, and what it is from."""
        return identity_files.identity_text(self.identity_file, self.default_identity)

    def own_paths(self) -> list[str]:
        """Return the folders of castore itself, which no tree takes in, and the identities that it uses.

        The folders change under a scan. Identities are taken, but never removed: without one nothing that is
        stored can be read.
        """
        own = directories.machine_paths()
        identities = identity_files.files_in_use(self.identity_file, self.default_identity)
        return [own.state, own.cache, *identities]

    def default_identity(self) -> str:
        """Return where `init` writes the identity of this store unless --identity names a file."""
        from castore.storage import LocalStorage
        from castore.store import Store

        paths = [environment.identity_path(one) for one in Store.read_ids(LocalStorage(self.store_path()))]
        return next((path for path in paths if os.path.exists(path)), paths[0])

    def make_store(
        self,
        argument: str | None,
        recipients: Sequence[str],
        *,
        average: int | None = None,
        passphrase: Callable[[], str] | None = None,
        replace_lost: bool = False,
        admins: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Make a store, and an identity unless recipients are given; return what was made.

        replace_lost: also where this machine has used a store that is missing now. admins: keys of admins, as
        text, besides that of the identity.
        """
        from castore.crypto import Admin, Identity, Recipient
        from castore.errors import UsageError
        from castore.state.identity_file import write_identity
        from castore.storage import LocalStorage
        from castore.store import Store
        from castore.store.format.config import DEFAULT_AVERAGE

        configured = self.settings.recipients if self.settings is not None else ()
        to: list[tuple[Recipient, str]] = [(Recipient.parse(r), "") for r in recipients or configured]
        if recipients and self.identity_file:
            raise UsageError("give --recipient or --identity: with recipients no identity is made")
        identity = admin = place = None
        if not to:
            admin, place = identity_files.identity_of_new_store(self.identity_file)
            if admin is None:
                admin = identity = Identity.generate()
            to = [(admin.recipient, "")]
        phrase = passphrase() if passphrase is not None and identity is not None else None
        path = self.store_path(argument)
        written = None

        def keep_identity(store_id: bytes) -> None:
            # Before the store is one: nobody could ever read what is put into a store without it.
            nonlocal written
            if identity is not None:
                written = place or environment.identity_path(store_id)
                write_identity(written, identity, phrase)

        missing_store.refuse_others(path)
        if not replace_lost:
            missing_store.refuse_replacement(path)
        storage = LocalStorage(path, create=True)
        average = average or DEFAULT_AVERAGE
        Store.create(
            *(storage, directories.machine_paths(), to),
            average=average,
            keep=keep_identity,
            identity=None if admin is None else lambda: admin,
            host=(self.settings.host or "") if self.settings is not None else "",
            admins=[Admin.parse(one).key for one in admins],
        ).close()
        texts = [recipient.text for recipient, _ in to]
        return {"store": path, "identity": written, "recipients": texts}

    def _make_first(self, path: str) -> None:
        missing_store.refuse_lost(path)
        made = self.make_store(None, ())
        print(f"castore: made a store in {path}", file=sys.stderr)
        if made["identity"]:
            print(f"castore: and an identity in {made['identity']}", file=sys.stderr)
            print(f"castore: {self.keep_safe(made['identity'])}", file=sys.stderr)

    @staticmethod
    def keep_safe(path: str) -> str:
        """Say what an identity file is and where it belongs."""
        return (
            f"Copy {path} somewhere safe, off this machine: without it nothing stored can be read, "
            "and whoever has it can read all of it."
        )

    def required_settings(self) -> Settings:
        """Return what castore.toml says. Raises UsageError where there is none."""
        from castore.errors import UsageError

        if self.settings is None:
            raise UsageError(
                "there is no castore.toml: write one with 'castore config init', or name one with --config"
            )
        return self.settings

    def service_settings(self, service: str) -> Service | None:
        """Return what castore.toml says of a service. Raises ConfigError where that has mistakes."""
        return self.settings.of(service) if self.settings is not None else None

    def present_revision(self, service: str) -> str | None:
        """Return the revision of a service's present configuration, if castore.toml says how to know."""
        from castore.services.revision import current

        settings = self.service_settings(service)
        return current(settings.revision, settings.timeout) if settings is not None else None

    def configured_sources(self, service: str) -> dict[str, Source]:
        """Return the parts of a service as castore.toml describes them. Raises UsageError."""
        from castore.errors import UsageError
        from castore.services.config import load
        from castore.services.snapshot import sources_of

        settings = self.service_settings(service)
        if settings is None or not settings.parts:
            where = self.settings.path if self.settings is not None else "no castore.toml"
            raise UsageError(
                f"nothing to take of {service!r}: give --tree, --dump or --exec, or describe it in "
                f"castore.toml ({where} was read)"
            )
        if self.settings is not None:
            # This time with its programs, which the tools of other services have no part in.
            load(self.settings.path, home=directories.home(), programs={service}, tolerant=True).of(service)
        return sources_of(settings)

    def configured_origins(self, service: str) -> dict[str, Origin]:
        """Return where castore.toml says that the parts of a service belong."""
        from castore.services.snapshot import configured_origins

        settings = self.service_settings(service)
        return configured_origins(settings) if settings is not None else {}

    @staticmethod
    def warn_damaged(store: Store) -> None:
        """Tell of objects that could not be read while the index was brought up to date."""
        for name, reason in sorted(store.damaged.items()):
            print(f"castore: damaged: {name}: {formatting.one_line(reason)}", file=sys.stderr)

    @staticmethod
    def report_missed(warnings: list[tuple[str, bytes, str]], taken: Generation) -> None:
        """Tell which files a snapshot missed, and end with the exit code for that."""
        from castore.errors import IncompleteError

        for part, path, reason in warnings[:_SHOWN]:
            print(f"castore: {part}:{formatting.printable(path)}: {reason}", file=sys.stderr)
        raise IncompleteError(
            f"{taken.service}@{taken.number} is committed, but "
            f"{formatting.count(taken.missed, 'file is', 'files are')} missing or doubtful in it; "
            f"'castore show {taken.service}@{taken.number}' lists them"
        )

    @staticmethod
    def report_restored(
        warnings: list[tuple[bytes, str]], damaged: list[tuple[bytes, str]]
    ) -> None:
        """Tell what a restore could not do, and end with the exit code for that."""
        from castore.errors import DamageError, IncompleteError

        for path, reason in [*damaged, *warnings[:_SHOWN]]:
            print(f"castore: {formatting.printable(path)}: {reason}", file=sys.stderr)
        if damaged:
            raise DamageError(
                f"not restored, since damaged in the store: {formatting.count(len(damaged), 'file')}"
            )
        if warnings:
            problems = formatting.count(len(warnings), "problem")
            raise IncompleteError(f"restored, but not completely: {problems}, as said above")
