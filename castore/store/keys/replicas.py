"""The two kinds of essential objects, `config/N` and `rotations/N`: each has a copy, `config/N.H`.

H is a hash of the bytes, so that a reader without a key can see which of the two is unchanged. It does not
authenticate the writer: the box in each object does.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from castore.errors import ObjectExistsError, ObjectMissingError, StorageError
from castore.store.format.names import copy_name, full_name, numbered_name, split_numbered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from castore.storage import Storage


def numbers(storage: Storage, folder: str) -> list[int]:
    """Return the numbers of the objects in a folder, in ascending order. Raises StorageError."""
    return sorted({number for _, number, _ in _names(storage, folder)})


def older_than(storage: Storage, folder: str, number: int) -> list[str]:
    """Return the names of the objects with lower numbers, and of their copies."""
    return [name for name, one, _ in _names(storage, folder) if one < number]


def put_copy(storage: Storage, folder: str, number: int, data: bytes) -> None:
    """Write the copy of an existing object. Raises StorageError."""
    with contextlib.suppress(ObjectExistsError):
        storage.put(copy_name(folder, number, data), data)


def keep_copy(storage: Storage, folder: str, number: int, read: Callable[[], bytes]) -> None:
    """Write the copy of an object that has none, unless a newer object has replaced it.

    read: returns the bytes. Raises StorageError, and what `read` raises.
    """
    copies = _copies(storage, folder, number)
    data = read()
    if copy_name(folder, number, data) in copies:
        return
    put_copy(storage, folder, number, data)
    # A copy alone would be accepted, like one whose object was lost: remove it if the object is replaced.
    present = list(_names(storage, folder))
    exists = any(one == number and not copied for _, one, copied in present)
    if not exists or max(one for _, one, _ in present) > number:
        storage.delete_all([copy_name(folder, number, data)])


def names(storage: Storage, folder: str, number: int) -> list[str]:
    """Return the names of an object and of its copies, copies first."""
    return sorted((name for name, one, _ in _names(storage, folder) if one == number), key=len, reverse=True)


def free_above(number: int, used: Collection[int]) -> int:
    """Return the lowest number above `number` that is not in `used`."""
    number += 1
    while number in used:
        number += 1
    return number


def variants(storage: Storage, folder: str, number: int) -> Iterator[bytes]:
    """Yield the bytes found for an object: its own, then those of copies that match their hash.

    Anybody who can add objects can also add a copy: only the content shows which one is genuine. Raises
    StorageError if none of them can be read.
    """
    seen: set[str] = set()
    problem: StorageError | None = None
    for name in reversed(names(storage, folder, number)):
        if name in seen:
            continue  # the copy, by its name, of bytes that were already yielded
        try:
            data = storage.get(name)
        except ObjectMissingError:
            continue
        except StorageError as error:
            problem = error
            continue
        copy = copy_name(folder, number, data)
        if name in {numbered_name(folder, number), copy} and copy not in seen:
            seen.add(copy)
            yield data
    if problem is not None and not seen:
        raise problem


def check(storage: Storage, folder: str, number: int, data: bytes) -> dict[str, str]:
    """Return what is wrong with an object that was written as `data`, and with its copies, by name.

    It is not an error that no copy exists yet.
    """
    reasons = {}
    wanted = [numbered_name(folder, number), *_copies(storage, folder, number)]
    for name in wanted:
        try:
            if storage.get(name) != data or name not in {wanted[0], copy_name(folder, number, data)}:
                reasons[name] = "its bytes are not those that were written"
        except ObjectMissingError:
            reasons[name] = "it is missing"
        except StorageError as error:
            reasons[name] = str(error)
    return reasons


def repair(storage: Storage, folder: str, number: int, data: bytes) -> None:
    """Write an object, or its copy, again where it is not `data`; one of the two is intact at all times.

    Raises StorageError, also if neither is intact.
    """
    main, copy = numbered_name(folder, number), copy_name(folder, number, data)
    for target, other in ((copy, main), (main, copy)):
        if _holds(storage, target, data):
            continue
        if not _holds(storage, other, data):
            raise StorageError(f"neither {main} nor its copy can be read now, and both are left as they are")
        storage.delete_all([target])
        storage.put(target, data)
    storage.delete_all(name for name in _copies(storage, folder, number) if name != copy)


def _names(storage: Storage, folder: str) -> Iterator[tuple[str, int, bool]]:
    """Yield name and number of each object, and whether it is a copy."""
    for short in storage.list(folder):
        if named := split_numbered(folder, short):
            yield full_name(folder, short), named.number, bool(named.digest)


def _copies(storage: Storage, folder: str, number: int) -> list[str]:
    return [name for name, one, copied in _names(storage, folder) if one == number and copied]


def _holds(storage: Storage, name: str, data: bytes) -> bool:
    try:
        return storage.get(name) == data
    except StorageError:
        return False
