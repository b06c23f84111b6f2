"""Checks of single values in a castore.toml: names, paths, programs, sizes, spans, schedules."""

from __future__ import annotations

import math
import os
import re
import threading
from typing import TYPE_CHECKING, Final

from castore.errors import ConfigError, UsageError
from castore.model.names import check_host, check_name
from castore.model.sizes import parse_size
from castore.process.users import account_of
from castore.storage import is_url, normalized_url

if TYPE_CHECKING:
    from castore.services.config.problems import Keys, Problems

_TIME: Final = "([01]?[0-9]|2[0-3]):[0-5][0-9]"
_SPAN: Final = "([0-9]{1,9}) ?([hdwmy])"
_HOURS: Final = {"h": 1, "d": 24, "w": 7 * 24, "m": 31 * 24, "y": 366 * 24}


def parse_span(text: str) -> int | None:
    """Return the seconds of a span like "36h", "14d", "8w", "6m" or "1y"; None if it is not valid."""
    match = re.fullmatch(_SPAN, text)
    return int(match[1]) * _HOURS[match[2]] * 3600 if match else None


class ValueChecks:
    """Checks of single values in one file; every method takes the path (`keys`) of its value."""

    def __init__(self, problems: Problems, home: str | None) -> None:
        self.programs_checked = False
        """Whether programs and users of the current service must exist on this machine."""
        self._problems = problems
        self._home = home

    def check_name(self, what: str, name: str, keys: Keys) -> None:
        """Raise ConfigError for a name that no service, or no part, may have."""
        try:
            check_name(what, name)
        except UsageError as error:
            raise self._problems.error(keys, str(error)) from error

    def check_host(self, host: str | None, keys: Keys) -> None:
        """Raise ConfigError for a name that no host may have."""
        if host is None:
            return
        if not host:
            raise self._problems.error(keys, "it is empty; the name of a host was expected")
        try:
            check_host(host)
        except UsageError as error:
            raise self._problems.error(keys, str(error)) from error

    def check_recipients(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Return recipients unchanged. Raises ConfigError for one that is not a recipient."""
        if texts:
            # libsodium is loaded only if the file names recipients.
            from castore.crypto.identity import Recipient

            for position, text in enumerate(texts):
                try:
                    Recipient.parse(text)
                except UsageError as error:
                    raise self._problems.error(("recipients", position), str(error)) from error
        return texts

    def size(self, text: str | None, keys: Keys) -> int | None:
        """Return the bytes of a size like "5 GB"; 0 for "off". Raises ConfigError."""
        if text is None or text == "off":
            return None if text is None else 0
        size = parse_size(text) if text.endswith(("B", "b")) else None
        if size is None:
            raise self._problems.error(
                keys, f'a size such as "5 GB" or "500 MiB", or "off", was expected, not {text!r}'
            )
        return size

    def rate(self, text: str | None, keys: Keys) -> int | None:
        """Return the bytes a second of a rate like "10M"; None for "off". Raises ConfigError."""
        if text is None or text == "off":
            return None
        rate = parse_size(text)
        if not rate:
            reason = f'bytes a second such as "500K" or "10 MB", or "off", were expected, not {text!r}'
            raise self._problems.error(keys, reason)
        return rate

    def check_user(self, name: str | None, keys: Keys) -> None:
        """Raise ConfigError for a user that no program can be run as here, if programs are looked for."""
        if self.programs_checked:
            try:
                account_of(name)
            except ConfigError as error:
                raise self._problems.error(keys, str(error)) from None

    def check_schedule(self, text: str | None, keys: Keys) -> None:
        """Raise ConfigError unless a schedule is a time of day or five fields."""
        if text is None or re.fullmatch(_TIME, text) or len(text.split()) == 5:
            return
        reason = f'"HH:MM" or five fields as in a crontab were expected, not {text!r}'
        raise self._problems.error(keys, reason)

    def check_seconds(self, seconds: float | None, keys: Keys) -> None:
        """Raise ConfigError for seconds that no clock can wait for: TOML has nan and inf, too."""
        if seconds is None or (math.isfinite(seconds) and 0 < seconds <= threading.TIMEOUT_MAX):
            return
        raise self._problems.error(keys, f"seconds, a number above 0, were expected, not {seconds:g}")

    def absolute(self, path: str, keys: Keys) -> str:
        """Return `path` with `~` replaced.

        Raises ConfigError for a relative path, which depends on the directory that castore is started in.
        """
        if self._home is not None and (path == "~" or path.startswith("~/")):
            path = self._home + path[1:]
        if not os.path.isabs(path):
            homeless = ", since no home directory is known" if path.startswith("~") else ""
            reason = f"{path!r} is a relative path{homeless}; an absolute one was expected"
            raise self._problems.error(keys, reason)
        if "\0" in path:
            raise self._problems.error(keys, f"{path!r} cannot be a path: it has a NUL byte")
        return os.path.normpath(path)

    def store_address(self, address: str, keys: Keys) -> str:
        """Return the address of a store: an absolute path as `absolute` does, or the one form of a URL.

        Raises ConfigError.
        """
        if not is_url(address):
            return self.absolute(address, keys)
        try:
            return normalized_url(address)
        except UsageError as error:
            raise self._problems.error(keys, str(error)) from None

    def check_program(self, argv: tuple[str, ...], keys: Keys) -> None:
        """Raise ConfigError for a program that cannot be run, or, if it is looked for, is missing."""
        if not argv or not argv[0]:
            raise self._problems.error(keys, "it is empty; a program and its arguments were expected")
        if any("\0" in argument for argument in argv):
            reason = "an argument has a NUL byte, which cannot be passed to a program"
            raise self._problems.error(keys, reason)
        program = argv[0]
        if "/" in program and not os.path.isabs(program):
            raise self._problems.error(
                (*keys, 0),
                f"{program!r} is a relative path; an absolute path, or a name that is found in PATH, was "
                "expected",
            )
        if self.programs_checked and _which(program) is None:
            where = "there" if os.path.isabs(program) else "in PATH"
            raise self._problems.error((*keys, 0), f"there is no program {program!r} {where}")


def _which(program: str) -> str | None:
    import shutil

    return shutil.which(program)
