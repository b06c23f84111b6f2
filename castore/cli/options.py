"""Options that many commands share, as decorators, and the types of their values."""

from __future__ import annotations

import contextlib
import functools
import shlex
from math import isnan
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import msgspec

    _Floats = click.ParamType[float]
    _Texts = click.ParamType[str]
else:
    _Floats = _Texts = click.ParamType  # generic from click 8.5 on


class StoreAddress(_Texts):
    """The path of a store, in which a leading `~` is replaced, or its URL."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Return the address."""
        from castore.state.directories import absolute, expanded

        absolute(value)  # refuses a relative one in a deleted working directory
        return expanded(value)


class LocalPath(StoreAddress):
    """A path on this machine; a leading `~`, which shells leave in --option=~/dir, is replaced."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path. A URL is refused: it would become a directory named `s3:`."""
        from castore.storage import is_url

        if is_url(value):
            self.fail(f"{value!r} is a URL, but a path of this machine is needed here", param, ctx)
        return super().convert(value, param, ctx)


class SubcommandGroup(click.Group):
    """A group whose help lists its commands as they were added, and cuts no line short."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands as they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands."""
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, errors included: see 'castore help json'."
)
"""Adds --json, as the argument `as_json`."""
_store_option = click.option(
    "--store",
    metavar="PATH",
    type=StoreAddress(),
    help="The store's directory or URL; else CASTORE_STORE, or castore.toml's.",
)
_config_option = click.option(
    "--config", metavar="FILE", type=LocalPath(), help="The castore.toml to read; else CASTORE_CONFIG."
)
_identity_option = click.option(
    "--identity",
    "identity_file",
    metavar="FILE",
    type=LocalPath(),
    help="The identity to read with; else CASTORE_IDENTITY or CASTORE_IDENTITY_COMMAND.",
)
_older_option = click.option(
    "--accept-older",
    is_flag=True,
    help="Accept a store that is older than this machine has seen it, from now on.",
)
trust_option = click.option(
    "--trust-recorded",
    is_flag=True,
    help="Use recorded programs, servers and paths of parts that castore.toml does not describe and this "
    "machine has not taken. Without this option they are shown and not used: look at them first.",
)
_trust_option = click.option(
    "--trust-admin",
    "trusted",
    metavar="KEY",
    multiple=True,
    help="Trust this admin key (castore-admin-...), and pin the store's admins.",
)




class Rate(_Floats):
    """A number of bytes a second, such as 500K or 10M; `off`: infinite."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the bytes a second."""
        if isinstance(value, float):
            return value
        from castore.model.sizes import parse_size

        rate = float("inf") if value == "off" else float(parse_size(value) or 0)
        if not rate:
            self.fail(f"{value!r}: bytes a second like 500K or 10M, or off, were expected", param, ctx)
        return rate


_upload_option = click.option(
    "--limit-upload",
    metavar="RATE",
    type=Rate(),
    help="Send at most RATE bytes a second (500K, 10M) to the store; 'off': any. Default: castore.toml's.",
)
_download_option = click.option(
    "--limit-download",
    metavar="RATE",
    type=Rate(),
    help="Receive at most RATE bytes a second from the store; 'off': any. Default: castore.toml's.",
)


def host_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --host, which chooses the host whose generations a command selects. Apply it before `common`."""

    @functools.wraps(command)
    def with_host(context: Any, *, host: str | None, **others: Any) -> Any:
        import msgspec

        return command(msgspec.structs.replace(context, host=host), **others)

    return click.option(
        "--host",
        metavar="NAME",
        help="Select generations of this host; '*': of every host. Default: this machine.",
    )(with_host)


def collected(
    argument: str, kind: type[msgspec.Struct]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Pass the options that are fields of the struct `kind` to a command as one argument.

    Apply it first, directly to the command.
    """
    names = list(kind.__struct_fields__)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_struct(*positional: Any, **options: Any) -> Any:
            struct = kind(**{name: options.pop(name) for name in names})
            return command(*positional, **{argument: struct}, **options)

        return with_struct

    return decorate


class Count(click.IntRange):
    """A number of things, in decimal digits, that fits in 64 bits."""

    def __init__(self, least: int) -> None:
        super().__init__(least, (1 << 63) - 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        if isinstance(value, str) and not (value.isascii() and value.lstrip("-").isdecimal()):
            self.fail(f"{value[:40]!r} is not a number", param, ctx)
        if isinstance(value, str) and len(value) > 40:
            self.fail("the number is too large", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds, up to a century."""

    def __init__(self) -> None:
        super().__init__(0, 36525 * 86400)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        found = super().convert(value, param, ctx)
        if isnan(found):
            self.fail("a number of seconds was expected", param, ctx)
        return found


class Percent(_Floats):
    """A share like 5 or 5%, as a fraction; 0 only if that is allowed."""

    name = "percent"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%"))
        except ValueError:
            share = -1.0
        if not 0 <= share <= 100 or (share == 0 and not self._zero):
            least = "from 0" if self._zero else "more than 0"
            self.fail(f"a share like 5% was expected, {least} and at most 100", param, ctx)
        return share / 100


@contextlib.contextmanager
def answered(otherwise: str) -> Iterator[None]:
    """Ask the user in the block. Raises UsageError with the message `otherwise` if there is no answer."""
    import sys

    from castore.errors import UsageError

    try:
        yield
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)  # ends the line of the question
        raise UsageError(otherwise) from None


def confirm(question: str) -> bool:
    """Ask on the terminal, and return whether the answer is yes. Raises UsageError if there is no answer."""
    otherwise = f"nothing was done: there is no terminal to ask {question!r} on; give --yes to agree"
    with answered(otherwise):
        yes: bool = click.confirm(question, err=True)
    return yes


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all commands share; a command's first argument is a CliContext of them."""

    @functools.wraps(command)
    def with_context(
        *,
        store: str | None,
        config: str | None,
        identity_file: str | None,
        accept_older: bool,
        trusted: tuple[str, ...],
        limit_upload: float | None,
        limit_download: float | None,
        **others: Any,
    ) -> Any:
        from castore.cli.context import CliContext

        context = CliContext(
            store,
            config,
            identity_file,
            accept_older,
            trusted=trusted,
            limit_upload=limit_upload,
            limit_download=limit_download,
        )
        return command(context, **others)

    for option in reversed(_common_options):
        with_context = option(with_context)
    return with_context


_common_options = (
    _store_option,
    _config_option,
    _identity_option,
    _older_option,
    _trust_option,
    _upload_option,
    _download_option,
)


def print_json(value: Any) -> None:
    """Set `value` as the JSON result of this run."""
    from castore.cli import document

    document.print_json(value)


def print_json_list(elements: Iterable[Any]) -> None:
    """Write a list as the JSON result of this run, each element when it is found."""
    from castore.cli import document

    document.print_json_list(elements)


numeric_ids_option = click.option(
    "--numeric-ids", is_flag=True, help="Restore owners by number, not by name."
)


def split_named(option: str, text: str, value_name: str) -> tuple[str, str]:
    """Split NAME=VALUE. value_name: what the value is, for messages: "DIR". Raises UsageError."""
    from castore.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"{option} takes NAME={value_name}, with the NAME of the part, not {text!r}")
    return name, value


def split_program(option: str, text: str) -> tuple[str, ...]:
    """Split a program and its arguments by a shell's rules, without a shell. Raises UsageError."""
    from castore.errors import UsageError

    try:
        argv = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} cannot be split into arguments: {error}") from None
    if not argv:
        raise UsageError(f"{option} names no program")
    return argv
