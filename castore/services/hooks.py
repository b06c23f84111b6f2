"""Run the hooks of a service: `before` and `after` a snapshot, and the health check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from castore.errors import CastoreError, ProgramError
from castore.process.users import account_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Sequence

    from castore.services.config import Service

    Argv = tuple[str, ...]

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 0.5
"""Pauses between two tries of the health check: each is twice as long as the previous one, up to this."""


class Hooks:
    """Runs the `before` programs in order, and at the end of the block the `after` programs in reverse.

    pairs: (before, after, user); either program may be empty; a user of None is castore's own. timeout:
    seconds for each program. If a `before` fails, its own `after` and the earlier ones are run. Failures of
    `after` do not raise, but are collected in `failures`.
    """

    def __init__(
        self, pairs: Sequence[tuple[Argv, Argv, str | None]], timeout: float | None = None
    ) -> None:
        self.failures: list[str] = []
        self._pairs = pairs
        self._timeout = timeout
        self._left: list[tuple[Argv, str | None]] = []

    @classmethod
    def of(cls, settings: Service | None) -> Hooks:
        """Return the hooks of a service and its parts."""
        if settings is None:
            return cls(())
        pairs = [(settings.before, settings.after, settings.run_as)]
        pairs += [(part.before, part.after, part.run_as) for part in settings.parts.values()]
        return cls([pair for pair in pairs if pair[0] or pair[1]], settings.timeout)

    @property
    def programs(self) -> tuple[Argv, ...]:
        """The `before` programs."""
        return tuple(before for before, _, _ in self._pairs if before)

    def __enter__(self) -> Self:
        try:
            for before, after, user in self._pairs:
                self._left.append((after, user))
                if before:
                    _run(before, timeout=self._timeout, account=account_of(user))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        interrupt: BaseException | None = None
        while self._left:
            after, user = self._left.pop()
            if after:
                try:
                    _run(after, timeout=self._timeout, account=account_of(user))
                except CastoreError as error:
                    self.failures.append(str(error))
                except BaseException as error:  # noqa: BLE001 - the other hooks are run nevertheless
                    interrupt = error
        if interrupt is not None:
            raise interrupt


def check_health(service: Service) -> None:
    """Run the service's health check until it succeeds.

    Raises ProgramError if it still fails after `health_timeout` seconds.
    """
    if not service.health:
        return
    end = time.monotonic() + service.health_timeout
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            _run(service.health, timeout=service.timeout, account=account_of(service.run_as))
        except ProgramError as error:
            if time.monotonic() >= end:
                raise ProgramError(f"the health check failed: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        else:
            return


def _run(argv: Argv, *, timeout: float | None, account: pwd.struct_passwd | None) -> None:
    from castore.process.runners import run

    run(argv, timeout=timeout, account=account)
