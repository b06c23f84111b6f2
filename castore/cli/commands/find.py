"""The command `find`: search paths in all generations."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from castore.cli import formatting
from castore.cli.messages import note_left_out
from castore.cli.options import Count, common, host_option, json_option, print_json_list
from castore.cli.path_versions import DamagedDirectories, is_directory, number_range, plain_hit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.api.store import Store
    from castore.cli.context import CliContext
    from castore.model.generation import Generation
    from castore.services.find import Hit


@click.command(epilog="Example: castore find '*.conf' etc")
@click.argument("pattern")
@click.argument("service", required=False)
@click.option("--part", default="", metavar="PART", help="Only in this part.")
@click.option("-i", "--ignore-case", is_flag=True, help="Ignore case.")
@click.option("--limit", type=Count(1), metavar="N", help="Stop after N paths.")
@json_option
@common
@host_option
def find(
    context: CliContext,
    pattern: str,
    service: str | None,
    part: str,
    ignore_case: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the paths that match PATTERN in any generation: of SERVICE, or of all services.

    PATTERN matches names at every depth ('*.log', 'conf.d/*'); with a leading '/', from the top of a tree, or
    of the file system where a tree is from there. '**' matches any number of directories; a '/' at the end,
    directories only. A path's versions are those of different size, time, mode or owner.
    """
    from itertools import islice

    from castore.errors import NotFoundError

    count = 0
    damaged = DamagedDirectories()
    with context.open_store(confined=()) as store:
        services = [service] if service is not None else store.services()
        found = (
            (name, hit)
            for name in services
            for hit in _of_service(
                store.service(name).find(
                    pattern, part=part, ignore_case=ignore_case, on_damage=damaged.of(name)
                ),
                is_named=service is not None,
            )
        )
        hits = islice(found, limit)
        if as_json:
            print_json_list({"service": name, **plain_hit(hit)} for name, hit in hits)
        columns: _Columns | None = None
        for name, hit in hits:
            count += 1
            if columns is None:
                columns = _Columns(formatting.terminal_width(), host_width=_host_width(store, services))
                print(columns.header)
            print(columns.line(name, hit))
        context.warn_damaged(store)
        if columns is not None:
            sys.stdout.flush()
            note_left_out(columns.left_out)
    damaged.refuse()
    if not count and not as_json:
        where = f"a generation of {service!r}" if service is not None else "any generation"
        raise NotFoundError(f"no path matches {pattern!r} in {where}")


def _of_service(hits: Iterator[Hit], *, is_named: bool) -> Iterator[Hit]:
    """Yield the matches in a service. is_named: raise NotFoundError if the chosen host has none of it."""
    from castore.errors import NotFoundError

    try:
        yield from hits
    except NotFoundError:
        if is_named:
            raise


def _host_width(store: Store, services: list[str]) -> int:
    """Return the width of the column of hosts, or 0 if each service has one host."""
    hosts = [store.service(name).hosts() for name in services]
    if all(len(names) <= 1 for names in hosts):
        return 0
    return max(len(formatting.printable(host)) for names in hosts for host in names)


class _Column(NamedTuple):
    """A column of the table."""

    name: str
    width: int
    right: bool = False


_COLUMNS: Final = (
    _Column("generations", 11, right=True),
    _Column("first", 10),
    _Column("last", 10),
    _Column("type", 4),
    _Column("size", 8, right=True),
    _Column("modified", 19),
    _Column("versions", 8, right=True),
)
_OPTIONAL: Final = ("modified", "versions", "type", "first", "last", "size")
"""Columns that are left out in this order on a narrow terminal."""
_PATH: Final = 24
"""Columns of the terminal that are kept for paths."""


def _path(service: str, hit: Hit) -> str:
    return f"{service}:{hit.part}" + (f"/{formatting.printable(hit.path)}" if hit.path else "")


class _Columns:
    """The columns of the table, whose lines are printed as they are found.

    left_out: the columns for which the terminal has no room.
    """

    def __init__(self, width: int | None, *, host_width: int) -> None:
        self._shown = list(_COLUMNS)
        if host_width:
            self._shown.append(_Column("host", max(host_width, len("host"))))
        self.left_out: list[str] = []
        for name in _OPTIONAL:
            if width is None or len(self._row(["" for _ in self._shown])) + _PATH <= width:
                break
            self._shown = [column for column in self._shown if column.name != name]
            self.left_out.append(name)

    @property
    def header(self) -> str:
        """The first line of the table."""
        return self._row([column.name for column in self._shown]) + "path"

    def line(self, service: str, hit: Hit) -> str:
        """Return the line of a path."""
        cells = _cells(hit)
        return self._row([cells[column.name] for column in self._shown]) + _path(service, hit)

    def _row(self, cells: list[str]) -> str:
        aligned = zip(self._shown, cells, strict=True)
        return "".join(
            (cell.rjust(column.width) if column.right else cell.ljust(column.width)) + "  "
            for column, cell in aligned
        )


def _cells(hit: Hit) -> dict[str, str]:
    newest = hit.spans[-1]
    runs: list[list[Generation]] = []
    for span in hit.spans:
        if runs and span.follows:
            runs[-1] = [runs[-1][0], span.generations[-1]]
        else:
            runs.append([span.generations[0], span.generations[-1]])
    entry = newest.entry
    return {
        "generations": ",".join(map(number_range, runs)),
        "first": _date(hit.spans[0].generations[0]),
        "last": _date(newest.generations[-1]),
        "type": formatting.mode_text(entry.st_mode)[0] if entry is not None else "-",
        "size": "-" if is_directory(newest) else formatting.size(newest.size),
        "modified": formatting.local_time(entry.mtime) if entry is not None else "-",
        "versions": str(len(hit.spans)),
        "host": formatting.printable(hit.host),
    }


def _date(generation: Generation) -> str:
    return formatting.local_time(generation.time)[:10]
