"""Open and create stores."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING

import msgspec

from castore.api.identity import files_of, provider_of
from castore.api.store import Messages, Store
from castore.crypto import Admin, Recipient
from castore.errors import UsageError
from castore.process.signal_shield import interrupt_note
from castore.state.directories import absolute, home, machine_paths, store_address
from castore.storage import open_storage
from castore.store import NewStore, StoreOptions
from castore.store import Store as OpenStore
from castore.store.format.config import DEFAULT_AVERAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from castore.api.identity import AnyIdentity
    from castore.crypto import Identity
    from castore.services.config import Settings
    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.storage.limited import Limits
    from castore.store.keys.trust import Agree


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How to open a store: the arguments of `open`, and what only the command line needs."""

    address: str
    """The path of the store's directory, or its URL."""
    identity: Callable[[], Identity] | None = None
    settings: Settings | None = None
    """castore.toml."""
    paths: MachinePaths
    excluded_paths: Callable[[], Sequence[str]] = tuple
    """Returns paths that trees store empty, and that a restore never removes."""
    host: str | None = None
    trust_admins: Collection[str] = ()
    accept_older: bool = False
    use_writer_key: bool = True
    """Whether to use the writer key of this machine, if it has one; else the identity."""
    confirm_configuration: Agree | None = None
    """Asks the user whether a configuration that no known admin has signed is right."""
    limits: Limits | None = None
    """Of the bytes a second; None: none."""
    report: Callable[[str], None] | None = None
    """Receives the messages of operations."""
    note: Callable[[str], None] | None = None
    """Receives messages about the store and the selection of generations, each once."""


def open(  # noqa: A001 - castore.open is what a caller looks for
    path: str | os.PathLike[str] | None = None,
    *,
    identity: AnyIdentity | None = None,
    passphrase: str | None = None,
    config: str | os.PathLike[str] | None = None,
    host: str | None = None,
    trust_admins: Collection[str] = (),
    accept_older: bool = False,
    limit_upload: float | None = None,
    limit_download: float | None = None,
    paths: MachinePaths | None = None,
    report: Callable[[str], None] | None = None,
) -> Store:
    """Open the store at `path`, a directory or a URL, or the one that castore.toml names if `path` is None.

    identity: the file of an identity, an identity, or a function that returns one when content is first
        read. Snapshots, pruning and verifying need none on a machine that has a writer key.
    passphrase: the passphrase of the file.
    config: a castore.toml that describes services.
    host: select generations of this host, of every host if "*", or of this machine if None.
    trust_admins: admin keys as text, which are accepted from now on.
    accept_older: accept a store that is older than this machine has seen it.
    limit_upload, limit_download: the bytes a second that are sent to the store, and received from it, at
        most, or None for the limits of castore.toml, and `math.inf` for none.
    paths: where this machine keeps its keys, index and caches, or None for the places of the command line.
    report: called with each message for the user when it arises. Results and `Store.warnings` also have
        the messages. Exceptions of `report` are logged, and do not end the operation.
    Raises NotFoundError, StaleStoreError, UntrustedError, IdentityError, ConfigError.
    """
    files = files_of(identity)
    settings = None
    if config is not None:
        from castore.services.config import load

        settings = load(absolute(os.fspath(config)), home=home(), programs=False, tolerant=True)
    if path is None:
        path = settings.store if settings is not None else None
    if path is None:
        raise UsageError("no store is named: give its path or URL, or a config with the key 'store'")
    request = OpenRequest(
        address=store_address(os.fspath(path)),
        identity=provider_of(identity, passphrase),
        settings=settings,
        paths=paths or machine_paths(),
        excluded_paths=lambda: files,
        host=host,
        trust_admins=trust_admins,
        accept_older=accept_older,
        limits=limits_of(settings, limit_upload, limit_download),
        report=report,
        note=report,
    )
    return open_store(request)


def open_store(request: OpenRequest) -> Store:
    """Open a store as the request says. Raises as `open` does."""
    messages = Messages(request.note)
    options = _options(request, messages)
    with _closed_if_it_fails(open_storage(request.address, limits=request.limits)) as storage:
        opened = OpenStore.open(storage, request.paths, request.identity, options)
    for name, reason in opened.keys.passed_over.items():
        messages(
            f"{name} is not accepted, and nothing depends on it: {reason} ('castore repair' with the "
            "identity of an admin deletes it)"
        )
    return Store(opened, messages, request.settings, request.excluded_paths, request.report)


def limits_of(
    settings: Settings | None, upload: float | None = None, download: float | None = None
) -> Limits | None:
    """Return the given limits, or else those of castore.toml; None if there are none. Raises UsageError."""
    if settings is not None:
        upload = settings.limit_upload if upload is None else upload
        download = settings.limit_download if download is None else download
    if upload is None and download is None:
        return None
    from castore.storage.limited import Limits

    return Limits(
        upload=math.inf if upload is None else upload, download=math.inf if download is None else download
    )


@contextlib.contextmanager
def _closed_if_it_fails(storage: Storage) -> Iterator[Storage]:
    """Close the connections of a storage if the block raises an error."""
    try:
        yield storage
    except BaseException:
        storage.close()
        raise


def _options(request: OpenRequest, say: Callable[[str], None]) -> StoreOptions:
    options = StoreOptions(
        local_key=request.use_writer_key,
        accept_older=request.accept_older,
        trust=[Admin.parse(trust_admin).key for trust_admin in request.trust_admins],
        agree=request.confirm_configuration,
        chosen_host=request.host,
        say=say,
    )
    if (settings := request.settings) is None:
        return options
    return msgspec.structs.replace(
        options,
        host=settings.host or "",
        former_hosts=frozenset(settings.former_hosts),
        recipients=settings.recipients,
        isolate_writers=settings.isolate_writers,
        base_cache=settings.base_cache,
    )


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How to create a store: the arguments of `create`, and what only the command line needs."""

    address: str
    """The path of the store's directory, or its URL."""
    paths: MachinePaths
    recipients: Sequence[Recipient]
    owner: Identity | None = None
    """The identity whose admin key signs the configuration, or None if an admin signs it later."""
    admins: Collection[str] = ()
    """Admin keys, as text, that may also sign it."""
    average_chunk_size: int = DEFAULT_AVERAGE
    host: str = ""
    """The name of this machine in the store, or empty for its host name."""
    limits: Limits | None = None
    """Of the bytes a second; None: none."""
    keep: Callable[[bytes], None] = lambda _store_id: None
    """Called with the id of the store before the store exists, to save the identity."""


def create(
    path: str | os.PathLike[str],
    *,
    identity: AnyIdentity | None = None,
    passphrase: str | None = None,
    recipients: Iterable[Recipient | str] = (),
    admins: Collection[str] = (),
    average_chunk_size: int = DEFAULT_AVERAGE,
    host: str = "",
    limit_upload: float | None = None,
    limit_download: float | None = None,
    paths: MachinePaths | None = None,
) -> Store:
    """Create a store at `path`, a directory or a URL, which must be new or empty, and open it.

    identity: as in `open`. It can decrypt and administer the store.
    passphrase: the passphrase of the identity's file.
    recipients: public keys of other identities that can decrypt the store.
    admins: admin keys, as text, that may also change recipients and machines.
    average_chunk_size: the mean length of a chunk, in bytes.
    host: the name of this machine in the store, or empty for its host name.
    limit_upload, limit_download: as in `open`; None: no limit.
    paths: as in `open`.
    Raises UsageError if there
    is no recipient at all; StorageError.
    """
    provider = provider_of(identity, passphrase)
    known = [Recipient.parse(key) if isinstance(key, str) else key for key in recipients]
    # Asked for once: its passphrase may have to be typed, and takes a second to stretch.
    owner = provider() if provider is not None else None
    if owner is not None:
        known.insert(0, owner.recipient)
    request = CreateRequest(
        address=store_address(os.fspath(path)),
        paths=paths or machine_paths(),
        recipients=list(dict.fromkeys(known)),
        owner=owner,
        admins=admins,
        average_chunk_size=average_chunk_size,
        host=host,
        limits=limits_of(None, limit_upload, limit_download),
    )
    files = files_of(identity)
    return create_store(request, excluded_paths=lambda: files)


def create_store(request: CreateRequest, *, excluded_paths: Callable[[], Sequence[str]] = tuple) -> Store:
    """Create a store as the request says, and open it. Raises as `create` does."""
    from castore.services.new_store import refuse_others

    if not request.recipients:
        raise UsageError("nobody could read the store: give an identity, or recipients")
    admins = [Admin.parse(admin).key for admin in request.admins]
    refuse_others(request.address)
    owner, messages = request.owner, Messages(None)
    new = NewStore(
        average_chunk_size=request.average_chunk_size,
        host=request.host,
        admins=admins,
        before_create=request.keep,
        options=StoreOptions(say=messages),
    )
    with (
        interrupt_note("the store is not complete: repeat the command to create it"),
        _closed_if_it_fails(open_storage(request.address, create=True, limits=request.limits)) as storage,
    ):
        opened = OpenStore.create(
            storage,
            request.paths,
            [(recipient, "") for recipient in request.recipients],
            None if owner is None else lambda: owner,
            new,
        )
    return Store(opened, messages, None, excluded_paths, None)
