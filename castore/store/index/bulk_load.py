"""Build an index of all packs of a store in one pass: read, sort, and write in order into a new environment.

Putting one pack at a time writes all over the tables. Here the records of all packs are sorted first, in
bounded memory, so that LMDB fills page after page. Nothing is made durable before all of it is. Then the new
environment replaces the old one. If the build is interrupted, the new one remains unused, and the old one is
unchanged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import lmdb

from castore.errors import DamageError, FormatError, StorageError
from castore.fs.durable import make_private_directory
from castore.fs.flock import directory_lock
from castore.kernel.index_rows import BASE_ROW, COPY, FIRST, ROW, Rows, part
from castore.store.format.names import pack_name
from castore.store.format.pack import RECORDS, open_footer
from castore.store.index.lmdb_env import Environment
from castore.store.index.opening import refusal
from castore.store.index.replacement import replace
from castore.store.index.schema import MARK, NEXT_PACK, NEXT_SESSION, NUMBER, PACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.crypto import WriterKey
    from castore.model.refs import PackId, SessionId
    from castore.storage import Storage
    from castore.store.format.pack import Footer

_FIRSTS: Final = struct.Struct("<32s27s")
_COPIES: Final = struct.Struct("<36s27s")
_BASES: Final = struct.Struct("<36sI128s")
_BLOCK: Final = 1 << 16
"""Rows that are put in one call."""
_COMMIT: Final = 16
"""Blocks per transaction: LMDB keeps up to half a gigabyte of changed pages in memory."""
_READERS: Final = 4
"""Threads that read footers."""
_KEPT: Final = ("generations", "revisions", "records", "ended")
"""Tables that are not built from packs, and are copied."""


def read_footers(
    storage: Storage, writer: WriterKey, packs: Iterable[PackId]
) -> Iterator[tuple[PackId, Footer | Exception]]:
    """Yield the footer of each pack, opened, in order; or the error that prevents that."""

    def read(pack: PackId) -> tuple[PackId, Footer | Exception]:
        try:
            return pack, open_footer(storage, pack_name(pack), writer)
        except (DamageError, FormatError, StorageError) as error:
            return pack, error

    with ThreadPoolExecutor(_READERS, thread_name_prefix="castore-footer") as pool:
        ahead: deque[Any] = deque()
        for pack in packs:
            ahead.append(pool.submit(read, pack))
            if len(ahead) > 8 * _READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def rebuild(
    environment: Environment,
    store_mark: bytes,
    footers: Iterable[tuple[PackId, Footer | Exception]],
    failed: Callable[[PackId, Exception], None],
) -> None:
    """Replace the environment by an index of these packs; tables that are not built from packs are copied.

    failed: is called with each pack that cannot be read, and the error. Raises StorageError.
    """
    path = environment.path
    folder = f"{path}.{os.urandom(8).hex()}"
    try:
        with _exclusive_rebuild(path):
            make_private_directory(folder)
            try:
                built = Environment(folder, durable=False)
                try:
                    _Builder(built, store_mark).run(footers, failed)
                    replace(environment, built, _KEPT)
                finally:
                    built.env.close()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except (lmdb.Error, OSError) as error:
        raise refusal(path, error, environment) from error


@contextlib.contextmanager
def _exclusive_rebuild(path: str) -> Iterator[None]:
    """Keep other rebuilds out, and remove folders that interrupted ones left next to the index."""
    above, own = os.path.split(path)
    with directory_lock(above):
        for name in os.listdir(above):
            if name.startswith(f"{own}."):
                shutil.rmtree(os.path.join(above, name), ignore_errors=True)
        yield


class _Builder:
    """Fills an empty environment."""

    def __init__(self, built: Environment, store_mark: bytes) -> None:
        self._built = built
        self._mark = store_mark
        self._sessions: dict[SessionId, int] = {}
        self._packs: list[tuple[PackId, int, int, bytes]] = []

    def run(
        self,
        footers: Iterable[tuple[PackId, Footer | Exception]],
        failed: Callable[[PackId, Exception], None],
    ) -> None:
        rows = Rows(self._built.path)
        for pack, footer in footers:
            if isinstance(footer, Exception):
                failed(pack, footer)
                continue
            sessions = [
                self._sessions.setdefault(session, len(self._sessions)) for session in footer.sessions
            ]
            span = RECORDS, footer.end
            number = len(self._packs)
            size = rows.add(footer.plain, footer.entry_count, span, number, sessions)
            if size is None:
                try:
                    footer.entries()
                except DamageError as error:
                    failed(pack, DamageError(f"{pack_name(pack)} is damaged: {error}"))
                    continue
                failed(pack, DamageError(f"{pack_name(pack)} is damaged: its footer does not decode"))
                continue
            owner = footer.signer.ljust(32, b"\0") + b"".join(map(NUMBER.pack, sessions))
            self._packs.append((pack, footer.size, size, owner))
        for block in rows.bases.merged(_BLOCK):
            pairs = [(key, joined[: 32 * count]) for key, count, joined in _BASES.iter_unpack(block)]
            self._built.append("bases", [pairs])
        self._put_records("nodes", rows.nodes.merged(_BLOCK))
        self._put_records("chunks", rows.chunks.merged(_BLOCK))
        self._built.write(self._put_numbers)

    def _put_records(self, table: str, blocks: Iterator[bytes]) -> None:
        before: bytes | None = None
        firsts: list[bytes] = []
        copies: list[bytes] = []
        for block in blocks:
            first, other = part(block, before)
            firsts.append(first)
            copies.append(other)
            before = block[-ROW : -ROW + 32]
            if len(firsts) == _COMMIT:
                self._put_parted(table, firsts, copies)
                firsts, copies = [], []
        self._put_parted(table, firsts, copies)

    def _put_parted(self, table: str, firsts: list[bytes], copies: list[bytes]) -> None:
        def change(txn: Any) -> None:
            cursor = txn.cursor(self._built.tables[table])
            for block in firsts:
                cursor.putmulti(_FIRSTS.iter_unpack(block), append=True)
            cursor = txn.cursor(self._built.tables["copies"])
            for block in copies:
                # Those of nodes were put before.
                cursor.putmulti(_COPIES.iter_unpack(block))

        self._built.write(change)

    def _put_numbers(self, txn: Any) -> None:
        tables = self._built.tables
        for number, (pack, length, size, owner) in enumerate(self._packs):
            key = NUMBER.pack(number)
            txn.put(key, PACK.pack(pack, length, size), db=tables["packs"])
            txn.put(pack, key, db=tables["pack_numbers"])
            txn.put(key, owner, db=tables["owners"])
        for session, number in self._sessions.items():
            txn.put(NUMBER.pack(number), session, db=tables["sessions"])
            txn.put(session, NUMBER.pack(number), db=tables["session_numbers"])
        txn.put(NEXT_PACK, NUMBER.pack(len(self._packs)), db=tables["meta"])
        txn.put(NEXT_SESSION, NUMBER.pack(len(self._sessions)), db=tables["meta"])
        txn.put(MARK, self._mark, db=tables["meta"])


assert (_FIRSTS.size, _COPIES.size, _BASES.size) == (FIRST, COPY, BASE_ROW)
