"""What can go wrong, and the exit code of each.

The tree, with the code the command line ends with::

    CastoreError                       1   failed
    +-- UsageError                     2   wrong usage or configuration, a missing path
    |   +-- UntrustedPathError         2   another user could decide where a path leads
    |   +-- ConfigError                2   castore.toml says something it cannot mean
    |       +-- ConfigProblemsError    2   all of its mistakes
    +-- IncompleteError                3   done, but not wholly
    +-- ProgramError                   4   a dump, restore or hook program failed
    +-- DamageError                    5   stored bytes are not what was stored
    |   +-- MissingError               5   something a generation needs is gone
    |   +-- RevokedKeyError             5   sealed under a former writer key, after that was replaced
    |       +-- SignerError            5   signed by somebody who may not, or not at all
    +-- NotFoundError                  6   no such store, service, generation or part
    +-- IdentityError                  7   an identity is needed, or the wrong one was given
    |   +-- KeyRotatedError               7   the writer key was replaced: this machine has a former one
    |   +-- UntrustedError             7   the configuration is signed by nobody whom this machine trusts
    +-- BusyError                      8   another castore is at work on this
    +-- DeploymentRevertedError                 9   a deployment failed, and was taken back
    +-- StaleStoreError                    10   the store is older than this machine has seen it
    +-- NotIntactError               11   a rollback failed, and the previous state was not restored
    +-- RevertInterruptedError                 130   putting something back was interrupted, too
    +-- SeveralError                       as the worst of the failures of several services
    +-- StorageError                   1   the place that holds the store refused an operation
    |   +-- ObjectExistsError          1   create-only: the name is taken
    |   +-- ObjectMissingError         1   the name is not there
    |   +-- StorageFullError           1   no room for a new object; the store did not change
    +-- FormatError                    1   a store of a version this castore does not know

A message names the thing, what was expected, and what to do next.
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
    """The call or the command line asks for something that cannot be done as it stands."""

    exit_code = 2


class UntrustedPathError(UsageError):
    """A path leads through a symbolic link that another user could have made."""


class ConfigError(UsageError):
    """castore.toml is not well formed, or says something it cannot mean."""


class ConfigProblemsError(ConfigError):
    """castore.toml has these mistakes."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class IncompleteError(CastoreError):
    """What was asked for is done, but files were missed; raised when all else is finished."""

    exit_code = 3


class ProgramError(CastoreError):
    """A dump, restore or hook program did not exist, was killed, or exited with another code than 0."""

    exit_code = 4


class DamageError(CastoreError):
    """Stored bytes are not what was stored: they were flipped, cut, swapped or forged."""

    exit_code = 5


class MissingError(DamageError):
    """An object or a chunk that a generation needs is not in the store."""


class RevokedKeyError(DamageError):
    """An object is sealed under a former writer key, and was not there when that was replaced."""


class SignerError(RevokedKeyError):
    """An object is signed by a key that may not sign it: it is not used, and blocks nothing."""


class NotFoundError(CastoreError):
    """There is no such store, service, generation or part."""

    exit_code = 6


class IdentityError(CastoreError):
    """Reading state needs an identity, and none, or one that opens nothing here, was given."""

    exit_code = 7


class KeyRotatedError(IdentityError):
    """The store's writer key was replaced, and this machine, or this process, has a former one."""


class UntrustedError(IdentityError):
    """No configuration of the store is signed by an admin whose key this machine pins."""


class BusyError(CastoreError):
    """Another process works on the same service of the same store."""

    exit_code = 8


class DeploymentRevertedError(CastoreError):
    """A deployment failed, and was taken back, with the state."""

    exit_code = 9


class StaleStoreError(CastoreError):
    """The store is not what this machine has seen of it: something in it went back."""

    exit_code = 10


class NotIntactError(CastoreError):
    """A rollback failed or was interrupted, and the previous state has not been restored."""

    exit_code = 11


class RevertInterruptedError(CastoreError):
    """What puts a state back was interrupted itself; the message says what it is now."""

    exit_code = EXIT_INTERRUPTED


class SeveralError(CastoreError):
    """Some of several services failed; `exit_code` is that of the worst failure."""


class StorageError(CastoreError):
    """The place that holds the store refused an operation."""


class ObjectExistsError(StorageError):
    """An object of that name is there already, and objects are never replaced."""


class ObjectMissingError(StorageError):
    """There is no object of that name."""


class StorageFullError(StorageError):
    """There is no room for a new object. The store did not change, so deleting objects may go on."""


class FormatError(CastoreError):
    """The store was written by a version of castore that this one does not know."""
