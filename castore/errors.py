"""The errors of castore, and the exit code of each.

The tree, with the exit code of the command line::

    CastoreError                       1   failed
    +-- UsageError                     2   wrong usage or configuration, a missing path
    |   +-- UntrustedPathError         2   another user could decide where a path leads
    |   +-- ConfigError                2   castore.toml is not valid
    |       +-- ConfigProblemsError    2   all mistakes of a castore.toml
    +-- IncompleteError                3   done, but some files are missing or possibly inconsistent
    +-- ProgramError                   4   a dump, restore or hook program failed
    +-- DamageError                    5   stored bytes differ from what was written
    |   +-- MissingError               5   an object or chunk that a generation needs is missing
    |   +-- RevokedKeyError            5   sealed under a writer key that had been replaced
    |       +-- SignerError            5   not signed, or signed by a key without the right to
    +-- NotFoundError                  6   no such store, service, generation or part
    +-- IdentityError                  7   an identity is needed, or the wrong one was given
    |   +-- KeyRotatedError            7   the writer key was replaced; this machine has a former one
    |   +-- UntrustedError             7   no admin that this machine trusts signed the configuration
    +-- BusyError                      8   another castore works on the same service
    +-- DeploymentRevertedError        9   a deployment failed and was reverted
    +-- StaleStoreError                10  the store is older than this machine has seen it
    +-- NotIntactError                 11  a rollback failed, and the previous state was not restored
    +-- RevertInterruptedError         130 a revert or a restore was interrupted
    +-- SeveralError                       the code of the worst failure of several services
    +-- StorageError                   1   the storage refused an operation
    |   +-- ObjectExistsError          1   create-only: an object of that name exists
    |   +-- ObjectMissingError         1   no object of that name exists
    |   +-- StorageFullError           1   no space for a new object; the store did not change
    |   +-- StoragePermissionError     1   the user or the credentials may not do that
    |   +-- TransientStorageError      1   the server failed; a repetition may succeed
    |       +-- ThrottledError         1   it asks for fewer requests
    |       +-- StorageTimeoutError    1   it did not answer in time
    |       +-- UnreachableError       1   no connection, or it broke
    +-- FormatError                    1   the store has a version that this castore does not know

A message says what failed on which object, why, and what to do next.
"""

from __future__ import annotations

from typing import Final

EXIT_CODES: Final[dict[int, str]] = {
    0: "done",
    1: "failed",
    2: "wrong usage or configuration; a path that the command or castore.toml names is missing",
    3: "done but incomplete: files were unreadable, changed while being read, or could not be restored "
    "completely; the generation is committed and records them",
    4: "a dump, restore or hook program failed; nothing was committed",
    5: "damage found",
    6: "no such store, service, generation or part",
    7: "an identity is needed, or the wrong one was given",
    8: "busy: another castore is at work on the same service",
    9: "the guarded deployment failed; it was reverted, and the previous state is restored",
    10: "the store is older than this machine has seen it: an old copy may have been restored",
    11: "a rollback failed or was interrupted, and the state of the service may be inconsistent: "
    "'castore recover SERVICE', or 'castore recover --forget SERVICE'",
    130: "interrupted",
}
"""Every exit code and its meaning; an unknown code means failure."""

EXIT_INTERRUPTED: Final = 130


class CastoreError(Exception):
    """The root of all errors a caller of castore can act on."""

    exit_code = 1


class UsageError(CastoreError):
    """The call or the command line asks for something that is not possible as given."""

    exit_code = 2


class UntrustedPathError(UsageError):
    """A path leads through a symbolic link that another user could have created."""


class ConfigError(UsageError):
    """castore.toml is not well formed, or a value in it is not valid."""


class ConfigProblemsError(ConfigError):
    """castore.toml has several mistakes: `problems` lists them."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class IncompleteError(CastoreError):
    """The operation is finished, but files were missed; raised after everything else is done."""

    exit_code = 3


class ProgramError(CastoreError):
    """A dump, restore or hook program does not exist, was killed, or exited with a code other than 0."""

    exit_code = 4


class DamageError(CastoreError):
    """Stored bytes differ from what was written: they were flipped, cut, swapped or forged."""

    exit_code = 5


class MissingError(DamageError):
    """An object or a chunk that a generation needs is not in the store."""


class RevokedKeyError(DamageError):
    """An object is sealed under a former writer key, and did not exist when that key was replaced."""


class SignerError(RevokedKeyError):
    """An object is signed by a key that may not sign it. castore ignores the object and goes on."""


class NotFoundError(CastoreError):
    """There is no such store, service, generation or part."""

    exit_code = 6


class IdentityError(CastoreError):
    """Reading state needs an identity: none was given, or the given one opens nothing here."""

    exit_code = 7


class KeyRotatedError(IdentityError):
    """The store's writer key was replaced, and this machine or this process has a former one."""


class UntrustedError(IdentityError):
    """No configuration of the store is signed by an admin whose key this machine trusts."""


class BusyError(CastoreError):
    """Another process works on the same service of the same store."""

    exit_code = 8


class DeploymentRevertedError(CastoreError):
    """A deployment failed, and was reverted together with the state."""

    exit_code = 9


class StaleStoreError(CastoreError):
    """Something in the store is older than this machine has already seen it."""

    exit_code = 10


class NotIntactError(CastoreError):
    """A rollback failed or was interrupted, and the previous state has not been restored."""

    exit_code = 11


class RevertInterruptedError(CastoreError):
    """Reverting a state, or a restore, was interrupted.

    The message says what the state is now, and which command continues.
    """

    exit_code = EXIT_INTERRUPTED


class SeveralError(CastoreError):
    """Some of several services failed; `exit_code` is that of the worst failure."""


class StorageError(CastoreError):
    """The storage that holds the store refused an operation."""


class ObjectExistsError(StorageError):
    """An object of that name exists, and objects are never replaced."""


class ObjectMissingError(StorageError):
    """No object of that name exists."""


class StorageFullError(StorageError):
    """There is no space for a new object. The store did not change, so objects can still be deleted."""


class StoragePermissionError(StorageError):
    """The user or the credentials of castore do not allow the operation. A repetition does not help."""


class TransientStorageError(StorageError):
    """The server failed, and a repetition may succeed. What was asked may have been done all the same."""


class ThrottledError(TransientStorageError):
    """The server asks for fewer requests. Nothing was done."""


class StorageTimeoutError(TransientStorageError):
    """The server did not answer in time."""


class UnreachableError(TransientStorageError):
    """The server cannot be reached, or the connection broke."""


class FormatError(CastoreError):
    """The store was written by a version of castore that this one does not know."""
