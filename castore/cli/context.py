"""The context of a command: its common options, configuration, store and identity."""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from castore.cli import environment, formatting, identity_files, missing_store
from castore.cli.messages import note, report, report_first
from castore.state import directories

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.api.store import Store
    from castore.crypto import Identity
    from castore.model.generation import Generation
    from castore.services.config import Service, Settings
    from castore.storage.limited import Limits
    from castore.store import Store as OpenStore
    from castore.store.keys.trust import Agree

class CliContext(msgspec.Struct, frozen=True, dict=True):
    """The options that all commands share, and the configuration, store and identity that they select."""

    store: str | None
    config: str | None
    identity_file: str | None
    accept_older: bool = False
    host: str | None = None
    trusted: tuple[str, ...] = ()
    """Admin keys that --trust-admin names."""
    limit_upload: float | None = None
    """Bytes a second; None: the limit of castore.toml."""
    limit_download: float | None = None

    @cached_property
    def settings(self) -> Settings | None:
        """The settings of castore.toml; None if there is none. Raises ConfigError."""
        path = environment.find_config(self.config)
        if path is None:
            return None
        from castore.services.config import load

        return load(path, home=directories.home(), programs=False, tolerant=True)

    def store_address(self, argument: str | None = None) -> str:
        """Return the path or URL of the store, which may not exist."""
        explicit = argument or self.store or environment.store_from_environment()
        if explicit:
            return directories.store_address(explicit)
        configured = self.settings.store if self.settings is not None else None
        return configured or environment.default_store()

    def limits(self) -> Limits | None:
        """Return the limits of the bytes a second; None if there are none."""
        from castore.api.opening import limits_of

        return limits_of(self.settings, self.limit_upload, self.limit_download)

    def open_store(
        self,
        *,
        create_default: bool = False,
        use_writer_key: bool = True,
        confined: Sequence[str] | None = None,
        confirm_configuration: Agree | None = None,
    ) -> Store:
        """Open the store; with `create_default`, create the default store if nothing is configured.

        use_writer_key: use the writer key of this machine, if it has one; else the identity. confined:
        confine the process; these are the paths that it changes apart from the store and castore's own files,
        and it runs no program. confirm_configuration: asks the user whether a configuration that no known
        admin has signed is right.
        """
        from castore.api.opening import OpenRequest, open_store
        from castore.errors import NotFoundError

        address = self.store_address()
        if create_default and address == environment.default_store() and not os.path.exists(address):
            from castore.cli.new_store import make_first

            make_first(self, address)
        if confined is not None:
            self._confine(address, confined)
        request = OpenRequest(
            address=address,
            identity=self.identity(),
            settings=self.settings,
            paths=directories.machine_paths(),
            excluded_paths=self.excluded_paths,
            host=self.host,
            trust_admins=self.trusted,
            accept_older=self.accept_older,
            use_writer_key=use_writer_key,
            confirm_configuration=confirm_configuration,
            limits=self.limits(),
            report=report,
            note=note,
        )
        try:
            return open_store(request)
        except NotFoundError as error:
            raise NotFoundError(f"{error}: {missing_store.hint_for(address)}") from None

    def open_internal(self, *, confined: Sequence[str] | None = None) -> OpenStore:
        """Open the store for a command that the Python API does not offer."""
        return self.open_store(confined=confined).internal

    def _confine(self, address: str, writable: Sequence[str]) -> None:
        """Confine this process to the store, castore's own files and the paths in `writable`.

        Not if it must start programs: one that prints the identity, or the ssh that reaches the store.
        """
        from castore.cli.confinement import confine
        from castore.errors import StorageError
        from castore.fs.durable import make_private_directory
        from castore.storage import import_backend, is_url

        is_remote = is_url(address)
        starts_ssh = address.startswith("ssh://")
        if starts_ssh or identity_files.runs_identity_program(self.identity_file):
            return
        if not is_remote and not os.path.isdir(address):
            return
        own = directories.machine_paths()
        for folder in (own.state, own.cache):
            with contextlib.suppress(StorageError):
                make_private_directory(folder)
        # Some libraries write temporary files and run programs while they are imported.
        import_backend(address)
        # A restore looks up names of users, and a directory service may provide them.
        store = [] if is_remote else [address]
        confine(
            [*store, own.state, own.cache, *writable],
            network=is_remote or bool(writable),
            programs=address.startswith("sftp://"),  # a ProxyCommand in ~/.ssh/config
        )

    def identity(self) -> Callable[[], Identity]:
        """Return a function that gets the identity when it is needed."""
        return identity_files.identity_provider(self.identity_file, self.default_identity)

    def identity_text(self) -> tuple[str, str]:
        """Return the identity as text, which may be locked, and its source."""
        return identity_files.identity_text(self.identity_file, self.default_identity)

    def excluded_paths(self) -> list[str]:
        """Return the paths that trees exclude: castore's own folders, and the identities in use.

        The folders change during a scan. A restore in place must never remove an identity: without it,
        nothing in the store can be read.
        """
        own = directories.machine_paths()
        identities = identity_files.files_in_use(self.identity_file, self.default_identity)
        return [own.state, own.cache, *identities]

    def default_identity(self) -> str:
        """Return where `init` writes the identity of this store by default."""
        from castore.storage import open_storage
        from castore.store import Store

        with contextlib.closing(open_storage(self.store_address())) as storage:
            store_ids = Store.read_ids(storage)
        paths = [directories.identity_path(store_id) for store_id in store_ids]
        return next((path for path in paths if os.path.exists(path)), paths[0])

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

    def configured_revision(self, service: str) -> str | None:
        """Return the configured revision of a service; None if castore.toml names no source of it."""
        from castore.services.revision import current

        settings = self.service_settings(service)
        return current(settings.revision, settings.timeout) if settings is not None else None

    @staticmethod
    def warn_damaged(store: Store | OpenStore) -> None:
        """Print the objects that could not be read while the index was updated."""
        for name, reason in sorted(store.damaged.items()):
            report(f"damaged: {name}: {reason}")

    @staticmethod
    def report_missed(warnings: list[tuple[str, bytes, str]], taken: Generation) -> None:
        """Print which files a snapshot missed. Raises IncompleteError."""
        from castore.errors import IncompleteError

        report_first([f"{part}:{formatting.printable(path)}: {reason}" for part, path, reason in warnings])
        files = formatting.count(taken.skipped_files, "file is", "files are")
        raise IncompleteError(
            f"{taken.service}@{taken.number} is committed, but {files} missing or possibly inconsistent "
            f"in it; 'castore show {taken.service}@{taken.number}' lists them"
        )

    @staticmethod
    def report_restored(warnings: list[tuple[bytes, str]], damaged: list[tuple[bytes, str]]) -> None:
        """Print what a restore could not restore. Raises DamageError or IncompleteError for it."""
        from castore.errors import DamageError, IncompleteError

        for path, reason in damaged:
            report(f"{formatting.printable(path)}: {reason}")
        report_first([f"{formatting.printable(path)}: {reason}" for path, reason in warnings])
        if damaged:
            raise DamageError(
                f"not restored, because damaged in the store: {formatting.count(len(damaged), 'file')}"
            )
        if warnings:
            problems = formatting.count(len(warnings), "problem")
            raise IncompleteError(f"restored, but not completely: {problems}")
