"""Objects that all else rests on, `config/N` and `eras/N`: each has a copy, `config/N.H`.

H is a hash of the bytes, so that who reads can tell, with no key, which of the two is as it was written.
It says nothing of who wrote them: that the boxes in them do.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import ObjectExistsError, ObjectMissingError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from castore.storage import Storage

_NAME: Final = re.compile(r"([1-9][0-9]{0,17})(?:\.([0-9a-f]{32}))?")


def numbers(storage: Storage, folder: str) -> list[int]:
    """Return the numbers of such objects, in ascending order. Raises StorageError."""
    return sorted({number for _, number, _ in _names(storage, folder)})


def below(storage: Storage, folder: str, number: int) -> list[str]:
    """Return the names of those with lower numbers, and of their copies."""
    return [name for name, one, _ in _names(storage, folder) if one < number]


def put_copy(storage: Storage, folder: str, number: int, data: bytes) -> None:
    """Write the copy of one that is there. Raises StorageError."""
    with contextlib.suppress(ObjectExistsError):
        storage.put(_copy_of(folder, number, data), data)


def keep_copy(storage: Storage, folder: str, number: int, whole: Callable[[], bytes]) -> None:
    """Write the copy of one that has none, unless another one has taken its place; whole: gives its bytes.

    Raises StorageError, and what that does.
    """
    copies = _copies(storage, folder, number)
    data = whole()
    if _copy_of(folder, number, data) in copies:
        return
    put_copy(storage, folder, number, data)
    # By itself it would count, as one does whose object was lost.
    there = list(_names(storage, folder))
    is_there = any(one == number and not copied for _, one, copied in there)
    if not is_there or max(one for _, one, _ in there) > number:
        storage.delete_all([_copy_of(folder, number, data)])


def names(storage: Storage, folder: str, number: int) -> list[str]:
    """Return the names of one and of its copies, these first."""
    return sorted((name for name, one, _ in _names(storage, folder) if one == number), key=len, reverse=True)


def free_above(number: int, taken: Collection[int]) -> int:
    """Return the lowest number above `number` that is not taken, by whomever it is."""
    number += 1
    while number in taken:
        number += 1
    return number


def variants(storage: Storage, folder: str, number: int) -> Iterator[bytes]:
    """Yield the bytes that there are for one: its own, then those of copies that are as they were written.

    Anybody who can add objects can add a copy, too: only what is in it says which one is genuine. Raises
    StorageError where none of them can be read.
    """
    seen: set[str] = set()
    problem: StorageError | None = None
    for name in reversed(names(storage, folder, number)):
        if name in seen:
            continue  # by its name, the copy of what was read
        try:
            data = storage.get(name)
        except ObjectMissingError:
            continue
        except StorageError as error:
            problem = error
            continue
        copy = _copy_of(folder, number, data)
        if name in {f"{folder}/{number}", copy} and copy not in seen:
            seen.add(copy)
            yield data
    if problem is not None and not seen:
        raise problem


def examine(storage: Storage, folder: str, number: int, data: bytes) -> dict[str, str]:
    """Return what is wrong with one that was written as `data`, and with its copies, by their names.

    That there is no copy yet is not wrong.
    """
    found = {}
    wanted = [f"{folder}/{number}", *_copies(storage, folder, number)]
    for name in wanted:
        try:
            if storage.get(name) != data or name not in {wanted[0], _copy_of(folder, number, data)}:
                found[name] = "its bytes are not those that were written"
        except ObjectMissingError:
            found[name] = "it is gone"
        except StorageError as error:
            found[name] = str(error)
    return found


def mend(storage: Storage, folder: str, number: int, data: bytes) -> None:
    """Write one, or its copy, anew where it is not `data`; at every moment one of the two is.

    Raises StorageError, also where neither is by now.
    """
    whole, copy = f"{folder}/{number}", _copy_of(folder, number, data)
    for hurt, other in ((copy, whole), (whole, copy)):
        if _holds(storage, hurt, data):
            continue
        if not _holds(storage, other, data):
            raise StorageError(f"neither {whole} nor its copy can be read now, and both are left as they are")
        storage.delete_all([hurt])
        storage.put(hurt, data)
    storage.delete_all(name for name in _copies(storage, folder, number) if name != copy)


def _names(storage: Storage, folder: str) -> Iterator[tuple[str, int, bool]]:
    """Yield name and number of each, and whether it is a copy."""
    for short in storage.list(folder):
        if match := _NAME.fullmatch(short):
            yield f"{folder}/{short}", int(match[1]), match[2] is not None


def _copies(storage: Storage, folder: str, number: int) -> list[str]:
    return [name for name, one, copied in _names(storage, folder) if one == number and copied]


def _holds(storage: Storage, name: str, data: bytes) -> bool:
    try:
        return storage.get(name) == data
    except StorageError:
        return False


def _copy_of(folder: str, number: int, data: bytes) -> str:
    return f"{folder}/{number}.{blake3(data).hexdigest()[:32]}"


def _intact(storage: Storage, copies: list[str], folder: str, number: int) -> bytes | None:
    """Return the bytes of a copy that is as it was written, or None."""
    for name in copies:
        with contextlib.suppress(StorageError):
            data = storage.get(name)
            if _copy_of(folder, number, data) == name:
                return data
    return None
