"""The context of a command: its common options, configuration, store and identity."""

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
    """The options that all commands share, and the configuration, store and identity that they select."""

    store: str | None
    config: str | None
    identity_file: str | None
    accept_older: bool = False
    host: str | None = None
    trusted: tuple[str, ...] = ()
    """Admin keys that --trust-admin names."""

    @cached_property
    def settings(self) -> Settings | None:
        """The settings of castore.toml; None if there is none. Raises ConfigError."""
        path = environment.find_config(self.config)
        if path is None:
            return None
        from castore.services.config import load

        return load(path, home=directories.home(), programs=False, tolerant=True)

    def store_path(self, argument: str | None = None) -> str:
        """Return the path of the store, which may not exist."""
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
        """Open the store; with `make`, create the default store if nothing is configured.

        local_key: use the writer key of this machine, if it has one; else the identity. confined: confine the
        process; these are the paths that it changes apart from the store and castore's own files, and it runs
        no program. agree: asks the user whether a configuration that no known admin has signed is right.
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
                "identity of an admin deletes it)"
            )
        return store

    def _confine(self, path: str, writable: Sequence[str]) -> None:
        """Confine this process to the store, castore's own files and the paths in `writable`."""
        from castore.cli.confinement import confine
        from castore.errors import StorageError
        from castore.fs.durable import make_private_directory

        if not os.path.isdir(path) or identity_files.runs_identity_program(self.identity_file):
            return
        own = directories.machine_paths()
        for folder in (own.state, own.cache):
            with contextlib.suppress(StorageError):
                make_private_directory(folder)
        # A restore looks up names of users, and a directory service may provide them.
        confine([path, own.state, own.cache, *writable], network=bool(writable))

    def identity(self) -> Callable[[], Identity]:
        """Return a function that gets the identity when it is needed."""
        return identity_files.identity_provider(self.identity_file, self.default_identity)

    def identity_text(self) -> tuple[str, str]:
        """Return the identity as text, which may be locked, and its source."""
        return identity_files.identity_text(self.identity_file, self.default_identity)

    def own_paths(self) -> list[str]:
        """Return the paths that trees exclude: castore's own folders, and the identities in use.

        The folders change during a scan. A restore in place must never remove an identity: without it,
        nothing in the store can be read.
        """
        own = directories.machine_paths()
        identities = identity_files.files_in_use(self.identity_file, self.default_identity)
        return [own.state, own.cache, *identities]

    def default_identity(self) -> str:
        """Return where `init` writes the identity of this store by default."""
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
        """Create a store, and an identity unless recipients are given; return what `--json` prints.

        replace_lost: also if this machine has used a store there that is missing now. admins: keys of admins,
        as text, in addition to that of the identity.
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
            raise UsageError("give --recipient or --identity: with recipients no identity is created")
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
            # Before the store is usable: nobody could ever read its content without the identity.
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
        print(f"castore: created a store in {path}", file=sys.stderr)
        if made["identity"]:
            print(f"castore: created an identity in {made['identity']}", file=sys.stderr)
            print(f"castore: {self.keep_safe(made['identity'])}", file=sys.stderr)

    @staticmethod
    def keep_safe(path: str) -> str:
        """Return the advice to copy an identity file to another machine."""
        return (
            f"Copy {path} somewhere safe, off this machine: without it nothing in the store can be read, "
            "and everybody who has it can read everything."
        )

    def required_settings(self) -> Settings:
        """Return the settings of castore.toml. Raises UsageError if there is none."""
        from castore.errors import UsageError

        if self.settings is None:
            raise UsageError(
                "there is no castore.toml: write one with 'castore config init', or name one with --config"
            )
        return self.settings

    def service_settings(self, service: str) -> Service | None:
        """Return the settings of a service; None if it has none. Raises ConfigError if they are wrong."""
        return self.settings.of(service) if self.settings is not None else None

    def present_revision(self, service: str) -> str | None:
        """Return the configured revision of a service; None if castore.toml names no source of it."""
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
                f"{service!r} has no parts to take: give --tree, --dump or --exec, or describe it in "
                f"castore.toml ({where} was read)"
            )
        if self.settings is not None:
            # Load again with its programs: the programs of other services may be missing.
            load(self.settings.path, home=directories.home(), programs={service}, tolerant=True).of(service)
        return sources_of(settings)

    def configured_origins(self, service: str) -> dict[str, Origin]:
        """Return the origins of the parts of a service as castore.toml describes them."""
        from castore.services.snapshot import configured_origins

        settings = self.service_settings(service)
        return configured_origins(settings) if settings is not None else {}

    @staticmethod
    def warn_damaged(store: Store) -> None:
        """Print the objects that could not be read while the index was updated."""
        for name, reason in sorted(store.damaged.items()):
            print(f"castore: damaged: {name}: {formatting.one_line(reason)}", file=sys.stderr)

    @staticmethod
    def report_missed(warnings: list[tuple[str, bytes, str]], taken: Generation) -> None:
        """Print which files a snapshot missed. Raises IncompleteError."""
        from castore.errors import IncompleteError

        for part, path, reason in warnings[:_SHOWN]:
            print(f"castore: {part}:{formatting.printable(path)}: {reason}", file=sys.stderr)
        raise IncompleteError(
            f"{taken.service}@{taken.number} is committed, but "
            f"{formatting.count(taken.skipped_files, 'file is', 'files are')} missing or doubtful in it; "
            f"'castore show {taken.service}@{taken.number}' lists them"
        )

    @staticmethod
    def report_restored(
        warnings: list[tuple[bytes, str]], damaged: list[tuple[bytes, str]]
    ) -> None:
        """Print what a restore could not restore. Raises DamageError or IncompleteError for it."""
        from castore.errors import DamageError, IncompleteError

        for path, reason in [*damaged, *warnings[:_SHOWN]]:
            print(f"castore: {formatting.printable(path)}: {reason}", file=sys.stderr)
        if damaged:
            raise DamageError(
                f"not restored, because damaged in the store: {formatting.count(len(damaged), 'file')}"
            )
        if warnings:
            problems = formatting.count(len(warnings), "problem")
            raise IncompleteError(f"restored, but not completely: {problems}, as listed above")
